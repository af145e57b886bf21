"""Untrusted pictures: every one decodes right, or fails with its reason."""

import io
import struct
import time
import zlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps
from simplejpeg import decode_jpeg_header
from meru.data.images import to_rgb
from meru.data.images import (
    ImageAugment,
    ImageError,
    augment_batch,
    augment_images,
    _colour_matrices,
    decode_image,
    n_draws,
    _decode_scaled,
    _random_affine,
    _random_boxes,
    reasons,
    augment_params,
    _recolour,
    resize_image,
    _warp,
)

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((80, 60), Image.BICUBIC)


def save(im, fmt, **kw):
    out = io.BytesIO()
    im.save(out, fmt, **kw)
    return out.getvalue()


def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png_of(w, h, depth=8, kind=2):
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, kind, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b''))
    )


def reason(data, **kw):
    with pytest.raises(ImageError) as e:
        decode_image(data, **kw)
    return e.value.reason


def pixels(im):
    return torch.from_numpy(np.array(im.convert('RGB'))).permute(2, 0, 1).float()


@pytest.mark.parametrize(
    'fmt,kw,tol',
    [('PNG', {}, 0), ('BMP', {}, 0), ('WEBP', dict(lossless=True), 0), ('JPEG', dict(quality=95), 3), ('GIF', {}, 12)],
)
def test_the_five_formats(fmt, kw, tol):
    got = decode_image(save(PHOTO, fmt, **kw))
    assert got.dtype == torch.uint8 and got.shape == (3, 60, 80)
    assert (got.float() - pixels(PHOTO)).abs().mean() <= tol


@pytest.mark.parametrize(
    'data,expected',
    [
        (b'', 'not_an_image'),
        (b'<html><body>404</body></html>', 'not_an_image'),
        (bytes(1000), 'not_an_image'),
        (b'\xff\xd8\xff\xe0', 'truncated'),
        (b'\x89PNG\r\n\x1a\n', 'truncated'),
        (b'GIF89a', 'truncated'),
        (b'BM', 'truncated'),
        (b'RIFF\0\0\0\0WEBPVP8 ', 'truncated'),
        (b'RIFF\0\0\0\0WAVEfmt ', 'not_an_image'),
        (save(PHOTO, 'TIFF'), 'format'),
        (save(PHOTO, 'ICO'), 'format'),
        (b'<svg xmlns=""/>', 'format'),
        (b'%PDF-1.7', 'format'),
        (b'\0\0\0\x20ftypisom' + bytes(50), 'format'),
        (b'\0\0\0\x20ftypavif' + bytes(50), 'truncated'),
        (save(PHOTO, 'PPM'), 'not_an_image'),
    ],
    ids=range(16),
)
def test_what_is_no_picture_of_ours(data, expected):
    assert reason(data) == expected


@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP'])
def test_half_a_file_is_truncated(fmt):
    data = save(PHOTO, fmt)
    assert reason(data[: len(data) // 2]) == 'truncated'


@given(
    st.sampled_from(['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP']),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_flipped_bytes_give_a_picture_or_a_reason(fmt, flips):
    data = bytearray(save(PHOTO, fmt))
    for at, value in flips:
        data[int(at * (len(data) - 1))] = value
    try:
        img = decode_image(bytes(data))
    except ImageError as e:
        assert e.reason in reasons
    else:
        assert img.dtype == torch.uint8 and img.shape[0] == 3


PLAIN = [
    dict(quality=90),
    dict(quality=30, subsampling=0),
    dict(quality=95, subsampling=1),
    dict(progressive=True),
    dict(restart_marker_blocks=2),
    dict(comment=b'hello'),
]


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('kw', PLAIN, ids=range(len(PLAIN)))
def test_a_jpeg_has_pillows_pixels(mode, kw):
    for size in [(80, 60), (81, 59), (1, 1), (17, 200)]:
        data = save(PHOTO.resize(size).convert(mode), 'JPEG', **kw)
        assert torch.equal(decode_image(data).float(), pixels(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_a_jpeg_is_scaled_as_pillow_drafts_it(mode):
    data = save(PHOTO.resize((811, 400)).convert(mode), 'JPEG')
    for least, scale in [(401, 1), (400, 1), (201, 1), (200, 2), (100, 4), (50, 8), (1, 8)]:
        im = Image.open(io.BytesIO(data))
        im.draft(None, (811 // scale, 400 // scale))
        got = _decode_scaled(data, least=least)
        assert got.pixels.shape == (-(-400 // scale), -(-811 // scale), 3) and (got.width, got.height) == (811, 400)
        assert (got.pixels == np.array(im.convert('RGB'))).all(), (least, scale)


def other_size(data):  # a second frame header before the first, 800 x 600: two readers may see two sizes
    at = data.index(b'\xff\xc0')
    return data[:at] + data[at : at + 5] + struct.pack('>HH', 600, 800) + data[at + 9 : at + 19] + data[at:]


JPEGS = [dict(quality=90), dict(quality=90, progressive=True), dict(restart_marker_blocks=2), dict(subsampling=0)]


@pytest.mark.parametrize('end', [b'', b'\xff\xd9'], ids=['no end marker', 'end marker'])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('kw', JPEGS, ids=range(len(JPEGS)))
def test_a_jpeg_cut_anywhere_is_damaged(mode, kw, end):
    whole = save(PHOTO.convert(mode), 'JPEG', **kw)
    for share in np.linspace(0.05, 0.97, 24):
        assert reason(whole[: int(share * len(whole))] + end) == 'truncated', share


def test_a_progressive_jpeg_cut_between_two_scans_is_damaged():
    whole = save(PHOTO, 'JPEG', progressive=True)
    tables = [i for i in range(len(whole)) if whole[i : i + 2] == b'\xff\xc4']
    assert len(tables) > 5
    for at in tables[2:]:
        assert reason(whole[:at] + b'\xff\xd9') == 'truncated', at


def odd_sampling(restarts=0):
    "Four inks, the last twice as fine as the others across: 5 blocks where there were 8, so 64 pixels for 40."
    noise = np.random.default_rng(0).integers(0, 255, (48, 40, 4), dtype=np.uint8)
    data = save(Image.fromarray(noise, 'CMYK'), 'JPEG', restart_marker_blocks=restarts)
    at = data.index(b'\xff\xc0')
    frame = bytearray(data[at : at + 22])
    frame[7:9], frame[20] = struct.pack('>H', 64), 0x21
    data = data[:at] + bytes(frame) + data[at + 22 :]
    interval = b'\xff\xdd\x00\x04' + struct.pack('>H', restarts)
    return data.replace(interval, interval[:4] + struct.pack('>H', restarts * 4 // 5))


def test_a_sampling_that_one_reader_does_not_know_is_a_picture():
    assert decode_jpeg_header(save(PHOTO.convert('CMYK'), 'JPEG'))[2] == 'CMYK'
    with pytest.raises(ValueError, match='subsampling'):
        decode_jpeg_header(odd_sampling())
    assert decode_image(odd_sampling()).shape == (3, 48, 64)


@pytest.mark.parametrize('restarts', [0, 20])
def test_such_a_jpeg_cut_anywhere_is_damaged(restarts):
    whole = odd_sampling(restarts)
    for at in np.linspace(700, len(whole) - 3, 40).astype(int):
        assert reason(whole[:at] + b'\xff\xd9') == 'truncated', at
    assert reason(whole[:-2]) == 'truncated'


def test_a_jpeg_with_two_frame_headers_is_damaged():
    assert reason(other_size(save(PHOTO, 'JPEG'))) == 'truncated'


def test_padding_behind_the_last_pixel_is_no_damage():
    data = save(PHOTO, 'JPEG')
    for more in (data + bytes(100), data[:-2] + bytes(64) + data[-2:], data + data):
        assert torch.equal(decode_image(more), decode_image(data))


def test_many_scans_are_refused_before_they_are_decoded(monkeypatch):
    whole = save(PHOTO.convert('L'), 'JPEG', progressive=True)
    empty = b'\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00' + b'\x00' * 8
    began = time.perf_counter()
    assert reason(whole[:-2] + empty * 12_000 + whole[-2:]) == 'too_many_scans'
    assert reason(whole[:-2] + empty * 500 + whole[-2:]) == 'too_many_scans'
    assert time.perf_counter() - began < 1


def test_a_small_file_that_decodes_for_minutes_is_refused():
    "64 million grey pixels, one scan of their means and a thousand of nothing: 220 kB."

    def segment(marker, data):
        return b'\xff' + bytes([marker]) + struct.pack('>H', len(data) + 2) + data

    runs = 30 * [32767] + [1_000_000 - 30 * 32767]  # blocks without a coefficient
    bits = ''.join('0' + format(run - 16384, '014b') for run in runs)
    nothing = bytes(int(bits[i : i + 8].ljust(8, '1'), 2) for i in range(0, len(bits), 8)).replace(b'\xff', b'\xff\0')
    frame = segment(0xC2, struct.pack('>BHHB', 8, 8000, 8000, 1) + b'\1\x11\0')
    tables = segment(0xDB, b'\0' + b'\1' * 64) + segment(0xC4, b'\0\1' + bytes(15) + b'\0')
    tables += segment(0xC4, b'\x10\1' + bytes(15) + b'\xe0')
    means = segment(0xDA, b'\1\1\0\0\0\0') + bytes(125_000)
    scan = segment(0xDA, b'\1\1\0\1\x3f\0') + nothing
    data = b'\xff\xd8' + tables[:69] + frame + tables[69:] + means + scan * 1000 + b'\xff\xd9'
    began = time.perf_counter()
    assert reason(data) == 'too_many_scans' and len(data) < 300_000
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize('size', [(300_000, 300_000), (2_000_000_000, 1), (10_000, 9_000), (8001, 8000)])
def test_bombs_are_refused_by_their_header(size):
    assert reason(png_of(*size)) == 'too_many_pixels'


def test_the_limit_can_be_set():
    assert reason(save(PHOTO, 'PNG'), max_pixels=4799) == 'too_many_pixels'
    assert decode_image(save(PHOTO, 'PNG'), max_pixels=4800).shape == (3, 60, 80)


def test_gif_bomb():
    assert (
        reason(
            b'GIF89a'
            + struct.pack('<HH', 65535, 65535)
            + b'\0\0\0,'
            + struct.pack('<HHHH', 0, 0, 65535, 65535)
            + b'\0\x02\x02\x44\x01\0;'
        )
        == 'too_many_pixels'
    )


@pytest.mark.parametrize(
    'turn,method', [(2, Image.FLIP_LEFT_RIGHT), (3, Image.ROTATE_180), (6, Image.ROTATE_90), (8, Image.ROTATE_270)]
)
@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP'])
def test_exif_turns_the_picture_upright(turn, method, fmt):
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = PHOTO.transpose(method)
    got = decode_image(save(stored, fmt, exif=exif, **({'lossless': True} if fmt == 'WEBP' else {})))
    assert got.shape == (3, 60, 80) and (got.float() - pixels(PHOTO)).abs().mean() < 4


def test_sixteen_bits_are_not_white():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert (decode_image(save(Image.fromarray(ramp), 'PNG'))[0].numpy() == ramp >> 8).all()


@pytest.mark.parametrize('turn', range(2, 9))
def test_all_eight_orientations_are_pillows(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = save(PHOTO, 'PNG', exif=exif)
    assert torch.equal(decode_image(data).float(), pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    got = _decode_scaled(data)
    assert (got.height, got.width) == got.pixels.shape[:2]


def app(number, payload):
    "A JPEG with one more application segment."
    data = save(PHOTO, 'JPEG')
    return data[:2] + bytes([0xFF, 0xE0 + number]) + struct.pack('>H', len(payload) + 2) + payload + data[2:]


def ifd(*tags):
    body = b''.join(struct.pack('<HHI', *o[:3]) + o[3] for o in tags)
    return b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + body + bytes(4)


def png_with(*extra):
    data = save(PHOTO, 'PNG')
    return data[:33] + b''.join(extra) + data[33:]


def webp_with(exif):
    return save(PHOTO, 'WEBP', lossless=True, exif=exif)


TURNED = (0x112, 3, 1, struct.pack('<HH', 6, 0))
WRONG_SUM = struct.pack('>I', 5) + b'tEXt' + b'a\0bcd' + b'0000'
ODD = dict(
    resolution_as_text=(app(1, ifd(TURNED, (0x11A, 2, 1, b'1\0\0\0'))), 6),
    exif_cut_off=(app(1, ifd(TURNED)[:18]), 1),
    exif_far_away=(app(1, b'Exif\0\0II*\0\xff\xff\xff\xff'), 1),
    orientation_nine=(app(1, ifd((0x112, 3, 1, struct.pack('<HH', 9, 0)))), 1),
    short_app14=(app(14, b'Adobe'), 1),
    short_jfif=(app(0, b'JFIF\0'), 1),
    odd_multi_picture=(app(2, b'MPF\0II*\0garbage'), 1),
    broken_profile=(app(2, b'ICC_PROFILE\0\x05\x01' + bytes(99)), 1),
    broken_photoshop=(app(13, b'Photoshop 3.0\0' + b'8BIM\x03\xed\xff'), 1),
    png_exif=(png_with(chunk(b'eXIf', b'\0\x08\0\x02\x01\x12\0\x03')), 1),
    png_turned=(png_with(chunk(b'eXIf', ifd(TURNED)[6:])), 6),
    png_comment_of_3_mb=(png_with(chunk(b'zTXt', b'Comment\0\0' + zlib.compress(b'a' * 3_000_000))), 1),
    png_many_comments=(png_with(*[chunk(b'zTXt', b'C\0\0' + zlib.compress(b'a' * 900_000))] * 99), 1),
    png_profile=(png_with(chunk(b'iCCP', b'p\0\0' + zlib.compress(b'a' * 9_000_000))), 1),
    png_wrong_checksum_of_a_comment=(png_with(WRONG_SUM), 1),
    webp_exif=(webp_with(b'Exif\0\0garbage!'), 1),
    webp_turned=(webp_with(ifd(TURNED)), 6),
)


@pytest.mark.parametrize('kind', ODD)
def test_notes_that_are_odd_do_not_make_a_picture_damaged(kind):
    data, turn = ODD[kind]
    got, plain = decode_image(data), PHOTO if turn == 1 else PHOTO.transpose(Image.ROTATE_270)
    assert got.shape[1:] == plain.size[::-1] and (got.float() - pixels(plain)).abs().mean() < 4


def test_a_wrong_checksum_of_pixels_is_damage():
    data = bytearray(save(PHOTO, 'PNG'))
    data[data.index(b'IEND') - 6] ^= 1
    assert reason(bytes(data)) == 'truncated'


def test_sixteen_bit_pictures_with_a_transparent_colour_lie_on_white():
    def deep(kind, row, clear):
        parts = (
            (b'IHDR', struct.pack('>IIBBBBB', 2, 1, 16, kind, 0, 0, 0)),
            (b'tRNS', clear),
            (b'IDAT', zlib.compress(row)),
        )
        return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*o) for o in (*parts, (b'IEND', b'')))

    grey = decode_image(deep(0, b'\0' + struct.pack('>HH', 0, 0x8000), b'\0\0'))
    assert grey[:, 0].T.tolist() == [[255] * 3, [128] * 3]
    red, blue = (0x8123, 0, 0), (0, 0, 0x8123)
    colour = decode_image(deep(2, b'\0' + struct.pack('>6H', *red, *blue), struct.pack('>3H', *red)))
    assert colour[:, 0].T.tolist() == [[255] * 3, [0, 0, 0x81]]


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'RGBA', 'CMYK', 'YCbCr'])
def test_every_mode_becomes_rgb(mode):
    fmt = 'JPEG' if mode in ('CMYK', 'YCbCr') else 'PNG'
    got = decode_image(save(PHOTO.convert(mode), fmt, **({'quality': 95} if fmt == 'JPEG' else {})))
    assert got.shape == (3, 60, 80)
    assert (got.float() - pixels(PHOTO.convert(mode))).abs().mean() <= (3 if fmt == 'JPEG' else 0)


@pytest.mark.parametrize('fmt', ['PNG', 'WEBP', 'GIF'])
def test_transparency_lies_on_white(fmt):
    im = Image.new('RGBA', (20, 20))
    im.paste((255, 0, 0, 255), (5, 5, 15, 15))
    got = decode_image(save(im, fmt, **({'lossless': True} if fmt == 'WEBP' else {})))
    assert got[:, 0, 0].tolist() == [255, 255, 255] and got[:, 10, 10].tolist() == [255, 0, 0]


def test_transparent_palette_and_grey():
    im = Image.new('P', (4, 4), 1)
    im.putpalette([0, 0, 0, 0, 0, 255])
    im.putpixel((0, 0), 0)
    got = decode_image(save(im, 'PNG', transparency=0))
    assert got[:, 0, 0].tolist() == [255] * 3 and got[:, 1, 1].tolist() == [0, 0, 255]
    assert decode_image(save(Image.new('LA', (4, 4), (0, 0)), 'PNG')).min() == 255


def test_the_first_frame_counts():
    frames = [Image.new('RGB', (8, 8), c) for c in ('red', 'green', 'blue')]
    assert decode_image(save(frames[0], 'GIF', save_all=True, append_images=frames[1:]))[:, 0, 0].tolist() == [
        255,
        0,
        0,
    ]


def test_the_evaluation_transform():
    wide = torch.zeros(3, 10, 30, dtype=torch.uint8)
    wide[:, :, 10:20] = 255
    assert (resize_image(wide, 5) == 255).all()
    assert (resize_image(wide.transpose(1, 2), 5) == 255).all()
    assert resize_image(torch.zeros(3, 1, 100_000, dtype=torch.uint8), 64).shape == (3, 64, 64)


FULL = ImageAugment(
    crop_scale=(0.3, 1.0),
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grey=0.2,
    degrees=20,
    shear=8,
    translate=0.1,
)
IMAGES = [decode_image(save(PHOTO.resize((40 + i, 60 - i)), 'PNG')) for i in range(40)]


@pytest.mark.parametrize('threads', [1, 2])
def test_a_picture_does_not_depend_on_its_batch(threads):
    u, before = np.random.default_rng(1).random((40, n_draws)), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = augment_images(IMAGES, 32, u, FULL)
        alone = torch.cat([augment_images(IMAGES[i : i + 1], 32, u[i : i + 1], FULL) for i in range(40)])
        mixed = augment_images(IMAGES[7:19], 32, u[7:19], FULL)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone) and torch.equal(together[7:19], mixed)


def test_each_setting_changes_something_and_zero_changes_nothing():
    u, none = np.random.default_rng(2).random((40, n_draws)), ImageAugment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    square = [resize_image(o, 48) for o in IMAGES]
    base = augment_images(square, 48, u, none)
    assert torch.equal(base, torch.stack(square))
    for name in ('flip', 'brightness', 'contrast', 'saturation', 'hue', 'grey', 'degrees', 'shear', 'translate'):
        aug = ImageAugment(
            crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), **{name: 20.0 if name in ('degrees', 'shear') else 0.5}
        )
        assert (augment_images(square, 48, u, aug).float() - base.float()).abs().mean() > 1, name


def test_flips_come_at_their_rate():
    u = np.random.default_rng(3).random((400, n_draws))
    half = torch.zeros(3, 8, 8, dtype=torch.uint8)
    half[:, :, 4:] = 255
    out = augment_images([half] * 400, 8, u, ImageAugment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.25))
    assert 70 < (out[:, 0, 0, 0] == 255).sum() < 130


def test_a_flip_is_a_mirror_image_and_nothing_else():
    u = np.random.default_rng(5).random((40, n_draws))
    left, right = u.copy(), u.copy()
    left[:, 22], right[:, 22] = 0.49, 0.51
    aug = ImageAugment(flip=0.5, brightness=0.3)
    assert torch.equal(augment_images(IMAGES, 16, left, aug).flip(-1), augment_images(IMAGES, 16, right, aug))


def test_warps_against_exact_turns_and_shifts():
    x = resize_image(IMAGES[0], 32).float()[None]
    top, middle = np.ones((1, 4)), np.full((1, 4), 0.5)

    def moved(**kw):
        u = middle.copy()
        u[0, kw.pop('draw')] = 1
        return _warp(x, _random_affine(u, **(dict(degrees=0, shear=0, translate=0) | kw)), 32)

    assert torch.allclose(moved(draw=0), x, atol=1e-3)
    assert torch.allclose(moved(draw=0, degrees=90), x.rot90(1, (2, 3)), atol=1e-2)
    assert torch.allclose(moved(draw=2, translate=0.25)[..., :24], x[..., 8:], atol=1e-3)
    assert torch.allclose(moved(draw=3, translate=0.25)[..., :24, :], x[..., 8:, :], atol=1e-3)
    assert torch.allclose(_random_affine(top, 0, 45, 0), torch.tensor([[[1.0, 1, 0], [0, 1, 0]]]), atol=1e-6)


def test_hue_turns_the_colour_circle():
    turn = lambda t: _colour_matrices(*np.ones((3, 1)), np.array([t]))[0][0]
    assert torch.allclose(turn(0.2) @ turn(0.3), turn(0.5), atol=1e-5) and torch.allclose(
        turn(1.0), torch.eye(3), atol=1e-5
    )
    red = turn(1 / 3) @ torch.tensor([1.0, 0, 0])
    assert red.argmax() != 0 and torch.allclose(turn(0.37) @ torch.ones(3), torch.ones(3), atol=1e-3)


def test_crops_keep_to_area_and_shape():
    boxes = _random_boxes(
        np.random.default_rng(4).random((2000, 22)), np.full((2000, 2), 1000), (0.25, 0.36), (0.8, 1.25)
    )
    area, shape = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    assert (
        0.249 < area.min() < 0.255
        and 0.355 < area.max() < 0.361
        and 0.79 < shape.min() < 0.81
        and 1.24 < shape.max() < 1.26
    )
    assert (boxes >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1000).all()


@pytest.mark.parametrize('hw', [(224, 224), (400, 500), (300, 900), (600, 200), (32, 31)])
def test_crops_follow_torchvisions_law(hw):
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(1)
    n, scale, ratio = 20_000, (0.5, 1.0), (3 / 4, 4 / 3)
    photo = torch.zeros(1, 1, 1).expand(1, *hw)
    theirs = np.array([RandomResizedCrop.get_params(photo, scale, ratio) for _ in range(n)])
    ours = _random_boxes(np.random.default_rng(2).random((n, 22)), np.full((n, 2), hw), scale, ratio)
    laws = dict(
        area=lambda box: box[:, 2] * box[:, 3],
        shape=lambda box: box[:, 3] / box[:, 2],
        top=lambda box: box[:, 0],
        left=lambda box: box[:, 1],
        middle=lambda box: box[:, 0] + box[:, 2] / 2,
        full_side=lambda box: (box[:, 2:] == hw).any(1),
    )
    for name, law in laws.items():
        assert ks_2samp(law(ours), law(theirs)).pvalue > 1e-3, name


def test_a_crop_that_never_fits_is_the_central_one():
    u = np.random.default_rng(3).random((3, 22))
    sides = np.array([[8, 640], [640, 8], [1, 1]])
    boxes = _random_boxes(u, sides, (0.5, 1.0), (3 / 4, 4 / 3))
    assert boxes.tolist() == [[0, 314, 8, 11], [314, 0, 11, 8], [0, 0, 1, 1]]


def test_colours_agree_with_torchvision():
    import torchvision.transforms.v2.functional as V

    x = resize_image(IMAGES[0], 32).float()[None]
    one = np.ones(1)
    for b, c, s, ours in [
        (1.2, 1, 1, V.adjust_brightness),
        (1, 0.6, 1, V.adjust_contrast),
        (1, 1, 0.4, V.adjust_saturation),
    ]:
        got = _recolour(x, *_colour_matrices(b * one, c * one, s * one, 0 * one)).clamp(0, 255)
        assert (got - ours(x / 255, b * c * s) * 255).abs().max() < 1.5


@pytest.mark.parametrize(
    'bad',
    [
        dict(flip=1.5),
        dict(hue=0.6),
        dict(degrees=-1),
        dict(crop_scale=(0, 1)),
        dict(crop_scale=(0.9, 0.5)),
        dict(crop_ratio=(-1, 1)),
        dict(grey=float('nan')),
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ImageAugment(**bad)


@pytest.mark.parametrize(
    'aug, most',
    [
        (ImageAugment(flip=0.5), 1),
        (ImageAugment(crop_scale=(0.1, 0.2)), 2),
        (ImageAugment(degrees=20, shear=5, translate=0.1), 3),
        (ImageAugment(flip=0.5, brightness=0.3, contrast=0.3, saturation=0.4, hue=0.1, grey=0.2), 4),
    ],
)
def test_a_batch_at_once_is_the_same_to_a_level_or_so(aug, most):
    "Pictures that are squares already: nothing is resized first, and the two ways differ by their roundings."
    pictures = torch.from_numpy(np.random.default_rng(2).integers(0, 255, (40, 3, 9, 9), dtype=np.uint8))
    pictures = torch.nn.functional.interpolate(pictures, size=(72, 72), mode='bicubic')
    u, hw = np.random.default_rng(3).random((40, n_draws)), np.full((40, 2), 72)
    slow, fast = (
        augment_images(list(pictures), 48, u, aug),
        augment_batch(pictures, augment_params(u, hw, aug), 48, aug),
    )
    off = (slow.float() - fast.float()).abs()
    assert off.max() <= most and off.mean() < 0.3
    assert torch.equal(augment_batch(pictures, augment_params(u, hw, aug), 48, aug, chunk=7), fast)


def _gradient():
    return Image.fromarray((np.indices((40, 60)).sum(0) * 2).astype(np.uint8)).convert('RGB')


def test_avif_is_read_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    _gradient().save(file := io.BytesIO(), 'avif', exif=exif, quality=90)
    turned = _gradient().transpose(Image.Transpose.ROTATE_270)
    pixels = decode_image(file.getvalue()).permute(1, 2, 0).numpy()
    assert pixels.shape == (60, 40, 3) and np.abs(pixels.astype(int) - np.array(turned)).mean() < 3


def test_heic_is_read_where_its_reader_is_installed():
    heif = pytest.importorskip('pillow_heif', reason="pip install '.[heic]'")
    heif.from_pillow(_gradient()).save(file := io.BytesIO(), quality=90)
    pixels = decode_image(file.getvalue()).permute(1, 2, 0).numpy()
    assert np.abs(pixels.astype(int) - np.array(_gradient())).mean() < 3
    assert reason(file.getvalue()[:-60]) == 'truncated'


def test_heic_without_its_reader_says_how_to_get_it(monkeypatch):
    import meru.data.images as I

    monkeypatch.setattr(I, '_known', lambda name: False)
    with pytest.raises(ImageError, match='HEIC: pip install "meru.heic."'):
        decode_image(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic')


def test_a_picture_of_three_colours_is_not_copied():
    assert to_rgb(PHOTO) is PHOTO
    tall = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1100, 7, 3), dtype=np.uint8))
    assert torch.equal(decode_image(save(tall, 'PNG')).float(), pixels(tall))
