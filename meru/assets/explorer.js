'use strict'
// A page to walk around in. Pictures of three spaces (κ = -1 hyperbolic, 0 flat, 1 sphere) share one formula:
// z -> (αz + β)/(ᾱ - κβ̄z) moves the plane rigidly. Distances, cones and walks are computed in the full space.
const $ = id => document.getElementById(id)
const data = JSON.parse($('data').textContent)
const { items, levels, groups, spaces } = data
const n = items.text.length, IMAGE = levels.length - 1, levelOf = items.level
const isText = i => levelOf[i] !== IMAGE
const calm = matchMedia('(prefers-reduced-motion: reduce)')

// ---------- numbers out of text ----------
const bytes = s => Uint8Array.from(atob(s), c => c.charCodeAt(0))
function half(h) {
  const e = h >> 10 & 31, m = h & 1023, s = h >> 15 ? -1 : 1
  return s * (e ? 2 ** (e - 15) * (1 + m / 1024) : 2 ** -14 * m / 1024)
}
const halves = s => Float64Array.from(new Uint16Array(bytes(s).buffer), half)
const floats = s => new Float32Array(bytes(s).buffer), doubles = s => new Float64Array(bytes(s).buffer)
const clamp = (x, a, b) => Math.min(b, Math.max(a, x))

// ---------- the full space: vectors v, one row an item; tangent vectors at the root, or unit vectors on the sphere ----------
const dot = (v, i, w, j, d) => { let s = 0; for (let k = 0, a = i * d, b = j * d; k < d; k++) s += v[a + k] * w[b + k]; return s }
function unpack(space) {
  const numbers = space.bits === 64 ? doubles : halves, v = space.v = numbers(space.vectors), d = space.dim = v.length / n
  const norm = space.norm = Float64Array.from({ length: n }, (_, i) => Math.sqrt(dot(v, i, v, i, d)))
  space.root = space.kappa === 1 ? numbers(space.centre) : null
  const root = i => Math.acos(clamp(dot(v, i, space.root, 0, d) / norm[i] / Math.sqrt(dot(space.root, 0, space.root, 0, d)), -1, 1))
  space.radius = space.root ? Float64Array.from({ length: n }, (_, i) => root(i)) : norm
  space.ladder = items.text.map((_, j) => j).filter(isText).sort((i, j) => space.radius[i] - space.radius[j])
  space.places.forEach(p => p.xy = (space.bits === 64 ? doubles : floats)(p.at))
  return space
}
const cosine = (s, i, j) => s.norm[i] && s.norm[j] ? clamp(dot(s.v, i, s.v, j, s.dim) / (s.norm[i] * s.norm[j]), -1, 1) : 1
// distance of points at radii a and b whose directions have cosine C; κ and c as of the space
function apart(s, a, b, C) {
  if (s.kappa === 1) return Math.acos(C)
  if (s.kappa === 0) return Math.sqrt(Math.max(0, (a - b) ** 2 + 2 * a * b * (1 - C)))
  const q = Math.sqrt(s.curv), h = Math.sinh(q * (a - b) / 2)
  return 2 * Math.asinh(Math.sqrt(h * h + Math.sinh(q * a) * Math.sinh(q * b) * (1 - C) / 2)) / q
}
const distance = (i, j, s = space) => i === j ? 0 : apart(s, s.radius[i], s.radius[j], cosine(s, i, j))
function aperture(s, a) {
  const size = s.kappa ? Math.sinh(Math.sqrt(s.curv) * a) / 2 : a
  return size <= s.min_radius ? Math.PI / 2 : Math.asin(s.min_radius / size)
}
// angle at radius a between straight away from the root and a point at radius b
function exterior(s, a, b, C) {
  const S = Math.sqrt(Math.max(0, 1 - C * C))
  if (!s.kappa) return Math.atan2(b * S, b * C - a)
  const q = Math.sqrt(s.curv), sa = Math.sinh(q * a), ca = Math.cosh(q * a), sb = Math.sinh(q * b), cb = Math.cosh(q * b)
  return Math.atan2(sb * S, ca * sb * C - cb * sa)
}
const holds = (s, a, b, C) => exterior(s, a, b, C) <= aperture(s, a)
// everything that lies in the cone of a text
function inside(i, s = space) {
  const found = []
  for (let j = 0; j < n; j++) if (j !== i && holds(s, s.radius[i], s.radius[j], cosine(s, i, j))) found.push(j)
  return found
}
function nearest(i, keep, count, s = space) {
  const found = []
  for (let j = 0; j < n; j++) if (j !== i && keep(j)) found.push([distance(i, j, s), j])
  return found.sort((p, q) => p[0] - q[0] || p[1] - q[1]).slice(0, count)
}
// fifty equal steps from an item to the root; at each the nearest text, among those whose cone holds the step, or the root
function walk(i, s = space, cones = s.cones) {
  const met = [], texts = []
  const toRoot = s.root ? Math.cos(s.radius[i]) : 1
  for (let j = 0; j < n; j++) if (j !== i && isText(j)) texts.push([j, cosine(s, i, j), s.root ? Math.cos(s.radius[j]) : 1])
  for (let k = 1; k <= 50; k++) {
    const t = 1 - k / 50, r = s.radius[i] * t
    let best = -1, least = s.root ? r : apart(s, r, 0, 1)
    // on the sphere the step is mixed of item and root, as CLIP's is
    const rest = s.root ? Math.sin(r) / Math.sin(s.radius[i] || 1) : 0, rooty = s.root ? Math.sin(s.radius[i] - r) / Math.sin(s.radius[i] || 1) : 0
    for (const [j, C, R] of texts) {
      const cos = s.root ? clamp(rest * C + rooty * R, -1, 1) : C, d = apart(s, s.radius[j], r, cos)
      if (d < least && (!cones || holds(s, s.radius[j], r, C))) { least = d; best = j }
    }
    if (best >= 0 && !met.includes(best)) met.push(best)
  }
  return met
}

// how surely i lies below text j, the smaller the surer; seen from the root, or from the mean direction of a sphere
function turn(s, i, j) {
  if (!s.root) return cosine(s, i, j)
  const [a, b] = [s.radius[i], s.radius[j]], C = Math.cos(distance(i, j, s))
  return clamp((C - Math.cos(a) * Math.cos(b)) / (Math.sin(a) * Math.sin(b) || 1e-12), -1, 1)
}
const READINGS = {
  distance: (s, i, j) => distance(i, j, s),
  detour: (s, i, j) => s.radius[j] + distance(i, j, s) - s.radius[i],
  direction: (s, i, j) => Math.acos(turn(s, i, j)),
  cone_angle: (s, i, j) => exterior(s, s.radius[j], s.radius[i], cosine(s, i, j)),
}
const atRoot = name => name === 'direction' || name === 'cone_angle' ? Math.PI / 2 : Infinity
const readingOf = s => s.walk ? s.walk.reading : 'path'
const coneful = s => s.cones && readingOf(s) === 'path'
function surest(i, s = space) {
  const read = READINGS[readingOf(s)]
  let best = -1, least = Infinity
  for (const j of s.ladder) { const value = read(s, i, j); if (value < least) { least = value; best = j } }
  return best
}
// from outside in, each text that no text nearer to the root surpasses; a picture walks on from the text it most surely lies below
function climb(i, s = space) {
  if (!isText(i)) { const first = surest(i, s); return first < 0 ? [] : [first, ...climb(first, s)] }
  const met = [], read = READINGS[readingOf(s)]
  let best = atRoot(readingOf(s))
  for (const j of s.ladder) {
    if (s.radius[j] >= s.radius[i]) break
    const value = read(s, i, j)
    if (value < best) { best = value; met.unshift(j) }
  }
  return met
}
// pictures whose walk passes text j, the surest first
function under(j, s = space) {
  s.climbs = s.climbs || new Map(byLevel[IMAGE].map(i => [i, said(i).length ? said(i) : climb(i, s)]))
  const read = READINGS[readingOf(s)]
  const found = byLevel[IMAGE].filter(i => s.climbs.get(i).includes(j)).map(i => [read(s, i, j), i])
  return found.sort((p, q) => p[0] - q[0] || p[1] - q[1]).map(p => p[1])
}
// the text nearest to each of some steps of the geodesic between two points; of a step only distances to both ends are needed
function between(i, j, s = space, steps = 24) {
  const D = distance(i, j, s), met = []
  if (!D) return met
  const q = Math.sqrt(s.curv), texts = s.ladder.filter(k => k !== i && k !== j).map(k => [k, distance(k, i, s), distance(k, j, s)])
  const mixed = (a, b, f, g) => (f * a + g * b)
  for (let step = 1; step < steps; step++) {
    const t = step / steps, u = 1 - t
    const far = s.kappa < 0 ? (a, b) => mixed(Math.cosh(q * a), Math.cosh(q * b), Math.sinh(u * q * D), Math.sinh(t * q * D))
      : s.kappa ? (a, b) => -mixed(Math.cos(a), Math.cos(b), Math.sin(u * D), Math.sin(t * D)) : (a, b) => mixed(a * a, b * b, u, t)
    let best = -1, least = Infinity
    for (const [k, a, b] of texts) { const d = far(a, b); if (d < least) { least = d; best = k } }
    if (best >= 0 && !met.includes(best)) met.push(best)
  }
  return met
}

// ---------- the plane: complex numbers as pairs, rigid motions as [α, β] ----------
const mul = (a, b) => [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]]
const conj = a => [a[0], -a[1]]
const hyp = (x, y) => Math.sqrt(x * x + y * y)
function compose(k, [a, b], [c, d]) {
  const x = mul(a, c), y = mul(b, conj(d)), z = mul(a, d), w = mul(b, conj(c))
  const p = [x[0] - k * y[0], x[1] - k * y[1]], q = [z[0] + w[0], z[1] + w[1]]
  const size = Math.sqrt(Math.abs(p[0] ** 2 + p[1] ** 2 + k * (q[0] ** 2 + q[1] ** 2))) || 1
  return [[p[0] / size, p[1] / size], [q[0] / size, q[1] / size]]
}
function move(k, [a, b], x, y) {
  const u = a[0] * x - a[1] * y + b[0], v = a[0] * y + a[1] * x + b[1]
  const s = a[0] - k * (b[0] * x + b[1] * y), t = -a[1] - k * (b[0] * y - b[1] * x), m = s * s + t * t || 1e-12
  return [(u * s + v * t) / m, (v * s - u * t) / m]
}
const shift = (k, x, y) => compose(k, [[1, 0], [x, y]], [[1, 0], [0, 0]])
const inverse = ([a, b]) => [conj(a), [-b[0], -b[1]]]
const still = () => [[1, 0], [0, 0]]
// share t of the way from the middle to w
function partway(k, [x, y], t) {
  const r = hyp(x, y)
  if (!r) return [0, 0]
  const f = k < 0 ? Math.tanh(t * Math.atanh(Math.min(r, 1 - 1e-12))) : k ? Math.tan(t * Math.atan(r)) : t * r
  return [x / r * f, y / r * f]
}
function geodesic(k, p, q, count) {
  const there = shift(k, p[0], p[1]), end = move(k, inverse(there), q[0], q[1])
  return Array.from({ length: count + 1 }, (_, i) => move(k, there, ...partway(k, end, i / count)))
}

// ---------- state ----------
let space = unpack(spaces[0]), place = space.places[0]
let view = still(), zoom = 1, selected = -1, hovered = -1, group = -1, path = [], lit = null, close = [], coned = false
// guided: the panel explains; aiming: the next point that is chosen is the other end of a way; end: that point
let guided = true, aiming = false, end = -1
const shown = levels.map((_, l) => data.visible[l])
const X = new Float64Array(n), Y = new Float64Array(n), F = new Float64Array(n), size = new Float32Array(n)
const imageAlpha = new Float32Array(n), labelAlpha = new Float32Array(n), at = new Float64Array(2 * n)
const kids = items.text.map(() => [])
items.parent.forEach((p, i) => { if (p >= 0) kids[p].push(i) })
const below = i => kids[i].flatMap(j => [j, ...below(j)])
const visible = i => shown[levelOf[i]] && (group < 0 || items.group[i] === group) || i === selected || i === end || path.includes(i)
// a fixed shuffle decides who is drawn where there is no room for all
const rank = i => (i * 2654435761 >>> 0) / 2 ** 32
const order = items.text.map((_, i) => i).sort((i, j) => (levelOf[i] === IMAGE) - (levelOf[j] === IMAGE) || levelOf[i] - levelOf[j] || rank(i) - rank(j))
const byLevel = levels.map((_, l) => order.filter(i => levelOf[i] === l))
// how loud a level is drawn: 0 for a few great words, 3 for many small ones, 4 for pictures
const loud = levels.map((_, l) => l === IMAGE ? 4 : Math.min(3, Math.max(l, byLevel[l].length <= 60 ? 0 : byLevel[l].length <= 200 ? 1 : 2)))
const great = levels.map((_, l) => l).filter(l => loud[l] < 2)
const thing = levels[IMAGE], words = IMAGE === 1 ? levels[0] + 's' : 'words'

const canvas = $('stage'), ctx = canvas.getContext('2d')
const atlas = new Image()
if (data.atlas) atlas.src = data.atlas
atlas.onload = () => redraw()
let W = 0, H = 0, S = 1, colour = {}, waiting = false, small = false
function readColours() {
  const css = getComputedStyle(document.documentElement)
  for (const k of ['bg', 'disk', 'ring', 'edge', 'ink', 'soft', 'halo', 'accent', 'path', 'tile', ...levels.map((_, l) => 'level' + l)]) colour[k] = css.getPropertyValue('--' + k).trim()
}
const levelColour = l => colour['level' + l]
function resize() {
  const box = canvas.getBoundingClientRect(), ratio = Math.min(devicePixelRatio || 1, 2)
  W = box.width; H = box.height; S = Math.max(40, Math.min(W, H) / 2 - 14)
  canvas.width = W * ratio; canvas.height = H * ratio
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0)
  if (small !== S < 230) { small = !small; widths.clear() }
  redraw()
}
function redraw() { if (!waiting) { waiting = true; requestAnimationFrame(draw) } }
const screen = ([x, y]) => [W / 2 + x * S * zoom, H / 2 - y * S * zoom]
const plane = (sx, sy) => [(sx - W / 2) / (S * zoom), (H / 2 - sy) / (S * zoom)]
const within = ([x, y], most = .985) => { const r = hyp(x, y); return space.kappa < 0 && r > most ? [x / r * most, y / r * most] : [x, y] }
// radius in the full space to distance from the middle of the drawing
function drawnRadius(r) {
  const q = (space.kappa < 0 ? Math.sqrt(space.curv) : 1) * r * place.scale
  return space.kappa < 0 ? Math.tanh(q / 2) : space.kappa ? Math.tan(Math.min(q, 3) / 2) : q * space.unit
}

// ---------- drawing ----------
function locate() {
  const k = space.kappa, count = byLevel[IMAGE].filter(visible).length
  // a picture's side, pixels: the more room for each and the nearer the middle, the larger
  const base = clamp(28 * Math.sqrt(S / Math.max(1, count)), 16, 48) * zoom ** .45
  for (let i = 0; i < n; i++) {
    const [x, y] = move(k, view, at[2 * i], at[2 * i + 1]), rr = x * x + y * y
    X[i] = W / 2 + x * S * zoom; Y[i] = H / 2 - y * S * zoom
    F[i] = k < 0 ? Math.max(0, 1 - rr) : k ? .5 / (1 + rr) : .35
    size[i] = clamp(base * (.65 + .75 * F[i]), 7, 96)
  }
}
function circle(sx, sy, r) { ctx.beginPath(); ctx.arc(sx, sy, r, 0, 7) }
function ring(R) {
  const k = space.kappa, home = move(k, inverse(view), 0, 0), r = hyp(...home), u = r ? [home[0] / r, home[1] / r] : [1, 0]
  const p = screen(move(k, view, u[0] * R, u[1] * R)), q = screen(move(k, view, -u[0] * R, -u[1] * R))
  return [(p[0] + q[0]) / 2, (p[1] + q[1]) / 2, hyp(p[0] - q[0], p[1] - q[1]) / 2]
}
function drawPlane() {
  ctx.fillStyle = colour.bg; ctx.fillRect(0, 0, W, H)
  if (space.kappa < 0) {
    const [sx, sy] = screen([0, 0])
    circle(sx, sy, S * zoom); ctx.fillStyle = colour.disk; ctx.fill()
    ctx.strokeStyle = colour.edge; ctx.lineWidth = 1.2; ctx.stroke()
  }
  const most = Math.max(...space.radius) || 1, step = [.02, .05, .1, .2, .25, .5, 1, 2, 5, 10, 20].find(s => most / s <= 5) || most / 4
  ctx.strokeStyle = colour.ring; ctx.lineWidth = 1; ctx.fillStyle = colour.soft; ctx.font = '11px system-ui, sans-serif'; ctx.textAlign = 'center'
  for (let r = step, last = -99; r < most * 1.15; r += step) {
    const [cx, cy, cr] = ring(drawnRadius(r))
    if (cr > 6 * (W + H)) continue
    circle(cx, cy, cr); ctx.stroke()
    if (Math.abs(cy + cr - 3 - last) > 13) { ctx.globalAlpha = .8; ctx.fillText(+r.toFixed(2), cx, last = cy + cr - 3); ctx.globalAlpha = 1 }
  }
}
function line(points) { ctx.beginPath(); points.forEach((p, i) => { const s = screen(p); i ? ctx.lineTo(...s) : ctx.moveTo(...s) }) }
const here = i => i < 0 ? move(space.kappa, view, 0, 0) : move(space.kappa, view, at[2 * i], at[2 * i + 1])
function arc(i, j) {
  const p = here(i), q = here(j), long = hyp(p[0] - q[0], p[1] - q[1]) * S * zoom
  line(geodesic(space.kappa, p, q, clamp(Math.round(long / 6), 4, 48))); ctx.stroke()
}
function drawCone(i) {
  const k = space.kappa, x = at[2 * i], y = at[2 * i + 1], r = hyp(x, y)
  if (!coneful(space) || !isText(i) || r < 1e-6) return
  const a = aperture(space, space.radius[i]), far = k ? 1 : 40, there = compose(k, view, shift(k, x, y)), mid = Math.atan2(y, x), out = []
  const put = (t, phi) => out.push(move(k, there, t * Math.cos(phi), t * Math.sin(phi)))
  for (let t = 0; t <= 24; t++) put(far * (t / 24), mid - a)
  for (let t = 0; t <= 40; t++) put(far, mid - a + 2 * a * t / 40)
  for (let t = 24; t >= 0; t--) put(far * (t / 24), mid + a)
  line(out); ctx.closePath()
  ctx.fillStyle = ctx.strokeStyle = levelColour(levelOf[i])
  ctx.globalAlpha = .1; ctx.fill(); ctx.globalAlpha = .55; ctx.lineWidth = 1.3; ctx.stroke(); ctx.globalAlpha = 1
}
function drawEdges() {
  ctx.strokeStyle = colour.edge; ctx.lineWidth = 1
  const faint = selected < 0 ? .5 : .16
  for (const l of great) for (const i of byLevel[l]) if (visible(i) && (l === 0 || visible(items.parent[i]))) { ctx.globalAlpha = l ? faint * .7 : faint; arc(i, items.parent[i]) }
  if (selected >= 0 && isText(selected)) { ctx.globalAlpha = .55; for (const j of kids[selected]) if (visible(j)) arc(j, selected) }
  ctx.globalAlpha = 1
  if (close.length) { ctx.strokeStyle = colour.accent; ctx.lineWidth = 1.2; ctx.globalAlpha = .7; for (const [, j] of close) if (visible(j)) arc(selected, j); ctx.globalAlpha = 1 }
  if (selected >= 0) {
    ctx.strokeStyle = colour.path; ctx.lineWidth = 3; ctx.lineCap = 'round'
    if (space.cones && !coned) ctx.setLineDash([7, 7])
    const stops = end >= 0 ? [selected, end] : space.ladder.length ? [selected, ...path, -1] : []
    for (let k = 1; k < stops.length; k++) arc(stops[k - 1], stops[k])
    ctx.setLineDash([])
  }
}
// a coarse map of what is taken, so that pictures and words do not cover each other; photos may overlap each other
const CELL = 6, WORD = 1, PICTURE = 2
let taken = new Uint8Array(0), across = 0, photos = []
function claim([x0, y0, x1, y1], kind = WORD, against = WORD | PICTURE) {
  if (x1 < 0 || y1 < 0 || x0 > W || y0 > H) return false
  const a = Math.max(0, x0 / CELL | 0), b = Math.min(across - 1, x1 / CELL | 0), c = Math.max(0, y0 / CELL | 0), d = Math.min(taken.length / across - 1 | 0, y1 / CELL | 0)
  for (let y = c; y <= d; y++) for (let x = a; x <= b; x++) if (taken[y * across + x] & against) return false
  for (let y = c; y <= d; y++) for (let x = a; x <= b; x++) taken[y * across + x] |= kind
  return true
}
function claimPicture(i, sure = false) {
  const w = size[i] * .42, near = j => Math.max(Math.abs(X[i] - X[j]), Math.abs(Y[i] - Y[j])) < w
  if (!sure && photos.some(near)) return false
  const against = sure ? 0 : data.drawn ? WORD | PICTURE : WORD
  if (!claim([X[i] - w, Y[i] - w, X[i] + w, Y[i] + w], PICTURE, against)) return false
  if (!data.drawn) photos.push(i)
  return true
}
const bright = i => i === selected || i === end || i === hovered || path.includes(i) || !lit || lit.has(i)
const fonts = [['600 15px', '500 13px', '400 12px', '400 11px', '400 12px'], ['600 12px', '500 11px', '400 11px', '400 10px', '400 11px']].map(row => row.map(f => f + ' system-ui, "DejaVu Sans", sans-serif'))
const font = l => fonts[+small][loud[l]]
const widths = new Map()
const short = i => items.text[i].length > 30 ? items.text[i].slice(0, 28).trimEnd() + '…' : items.text[i]
function width(i) { if (!widths.has(i)) { ctx.font = font(levelOf[i]); widths.set(i, ctx.measureText(short(i)).width) } return widths.get(i) }
const lift = i => levelOf[i] === IMAGE ? size[i] * (i === selected || i === hovered ? .85 : .5) + 9 : 0
// right of its point, left, above or below, whatever is free; where it was before comes first
const side = new Uint8Array(n)
function labelAt(i) {
  const w = width(i), up = lift(i)
  return up ? [X[i] - w / 2, Y[i] + up] : [[X[i] + 8, Y[i]], [X[i] - 8 - w, Y[i]], [X[i] - w / 2, Y[i] - 14], [X[i] - w / 2, Y[i] + 14]][side[i]]
}
function claimLabel(i) {
  const was = side[i]
  for (const s of lift(i) ? [0] : loud[levelOf[i]] > 1 ? [was, 0, 1] : [was, 0, 1, 2, 3]) {
    side[i] = s
    const [x, y] = labelAt(i)
    if (x > 1 && x + width(i) < W - 1 && claim([x, y - 8, x + width(i), y + 7])) return true
  }
  side[i] = was
  return false
}
function arrange() {
  across = Math.ceil(W / CELL); photos = []; taken = new Uint8Array(across * Math.ceil(H / CELL))
  const k = space.kappa, [rx, ry] = screen(here(-1)), label = new Uint8Array(n), picture = new Uint8Array(n), open = i => visible(i) && X[i] > -40 && X[i] < W + 40 && Y[i] > -40 && Y[i] < H + 40
  const special = [hovered, selected, end, ...path].filter(i => i >= 0 && open(i))
  claim([rx - 14, ry - 22, rx + 14, ry + 9])
  for (const i of special) if (items.tile[i] >= 0) picture[i] = claimPicture(i, true)
  // a photo under its caption would say the same twice
  const twice = i => !isText(i) && path.some(j => items.text[j] === items.text[i])
  for (const i of special) if (!twice(i)) label[i] = claimLabel(i) || i === hovered || i === selected || i === end
  const name = l => { for (const i of byLevel[l]) if (open(i) && bright(i) && !label[i] && F[i] > .2) label[i] = claimLabel(i) }
  const early = l => data.drawn || !loud[l]  // many captions come after the photos
  great.filter(early).forEach(name)
  for (const lamp of [true, false]) for (const i of byLevel[IMAGE]) if (open(i) && !picture[i] && items.tile[i] >= 0 && bright(i) === lamp) picture[i] = claimPicture(i)
  great.filter(l => !early(l)).forEach(name)
  for (let l = 0; l < IMAGE; l++) for (const i of byLevel[l]) if (loud[l] > 1 && open(i) && bright(i) && !label[i] && F[i] * zoom > (k < 0 ? great.length ? .75 : .2 : 0)) label[i] = claimLabel(i)
  return ease(label, picture)
}
function ease(label, picture) {
  let moving = false
  const step = calm.matches ? 1 : .28
  for (const [alpha, goal] of [[labelAlpha, label], [imageAlpha, picture]]) for (let i = 0; i < n; i++) {
    const gap = goal[i] - alpha[i]
    if (Math.abs(gap) < .02) alpha[i] = goal[i]; else { alpha[i] += gap * step; moving = true }
  }
  return moving
}
function drawDots() {
  for (let l = IMAGE; l >= 0; l--) for (const lamp of [false, true]) {
    ctx.fillStyle = levelColour(l); ctx.globalAlpha = lamp ? (l === IMAGE ? .75 : .95) : .13
    ctx.beginPath()
    const r0 = [6, 4.4, 3, 2.4, 2.2][loud[l]]
    for (const i of byLevel[l]) if (visible(i) && bright(i) === lamp && imageAlpha[i] < .9 && X[i] > -9 && X[i] < W + 9 && Y[i] > -9 && Y[i] < H + 9) {
      const r = r0 * (.5 + .5 * F[i]) * clamp(zoom ** .3, .8, 1.6) * clamp(S / 380, .6, 1)
      ctx.moveTo(X[i] + r, Y[i]); ctx.arc(X[i], Y[i], r, 0, 6.2832)
    }
    ctx.fill()
  }
  ctx.globalAlpha = 1
}
// pictures in the order in which they are drawn: what is looked at lies on top, then what is nearest to the middle
const height = i => (i === hovered ? 4 : i === selected || i === end ? 3 : bright(i) ? 1 : 0) + F[i]
const stack = () => byLevel[IMAGE].filter(i => imageAlpha[i] >= .03 && visible(i) && items.tile[i] >= 0).sort((i, j) => height(i) - height(j))
function drawImages() {
  if (!atlas.complete || !atlas.width) return
  ctx.strokeStyle = colour.disk; ctx.lineWidth = 1
  const t = data.tile, dark = document.documentElement.dataset.theme === 'dark'
  for (const i of stack()) {
    const big = i === hovered || i === selected ? 1.5 : 1, w = size[i] * big, tile = items.tile[i]
    ctx.globalAlpha = imageAlpha[i] * (bright(i) ? 1 : .13)
    if (dark && data.drawn && bright(i)) { ctx.fillStyle = colour.tile; circle(X[i], Y[i], w * .6); ctx.fill() }
    ctx.drawImage(atlas, tile % data.columns * t, Math.floor(tile / data.columns) * t, t, t, X[i] - w / 2, Y[i] - w / 2, w, w)
    if (!data.drawn) ctx.strokeRect(X[i] - w / 2, Y[i] - w / 2, w, w)
  }
  ctx.globalAlpha = 1
}
function drawLabels() {
  ctx.lineJoin = 'round'; ctx.textBaseline = 'middle'; ctx.textAlign = 'left'
  for (let l = IMAGE; l >= 0; l--) {
    ctx.font = font(l)
    for (const i of byLevel[l]) {
      if (labelAlpha[i] < .03 || !visible(i)) continue
      const strong = i === selected || i === hovered, [x, y] = labelAt(i)
      ctx.globalAlpha = labelAlpha[i]
      ctx.strokeStyle = colour.halo; ctx.lineWidth = 3.5; ctx.fillStyle = strong || loud[l] < 2 || path.includes(i) ? colour.ink : colour.soft
      ctx.strokeText(short(i), x, y); ctx.fillText(short(i), x, y)
    }
  }
  ctx.globalAlpha = 1; ctx.textBaseline = 'alphabetic'
}
function drawRoot() {
  const [x, y] = screen(here(-1))
  ctx.strokeStyle = colour.ink; ctx.lineWidth = 2
  ctx.beginPath(); ctx.moveTo(x - 7, y); ctx.lineTo(x + 7, y); ctx.moveTo(x, y - 7); ctx.lineTo(x, y + 7); ctx.stroke()
  circle(x, y, 10); ctx.lineWidth = 1.4; ctx.stroke()
  ctx.font = '600 12px system-ui, sans-serif'; ctx.textAlign = 'center'; ctx.strokeStyle = colour.halo; ctx.lineWidth = 3.5; ctx.fillStyle = colour.ink
  ctx.strokeText('root', x, y - 15); ctx.fillText('root', x, y - 15)
}
function mark(i, r, c) { if (i >= 0) { circle(X[i], Y[i], r); ctx.strokeStyle = c; ctx.lineWidth = 2.4; ctx.stroke() } }
let frames = 0
function draw() {
  waiting = false; frames++
  locate(); drawPlane()
  const cone = hovered >= 0 && isText(hovered) ? hovered : selected
  if (cone >= 0) drawCone(cone)
  drawEdges()
  const moving = arrange()
  drawDots(); drawImages(); drawRoot(); drawLabels()
  mark(selected, levelOf[selected] === IMAGE ? size[selected] * .85 : 9, colour.path)
  mark(end, levelOf[end] === IMAGE ? size[end] * .85 : 9, colour.path)
  if (hovered !== selected) mark(hovered, levelOf[hovered] === IMAGE ? size[hovered] * .85 : 8, colour.accent)
  if (moving) redraw()
}

// ---------- moving about ----------
let running = 0
function animate(step) {
  const mine = ++running, start = performance.now()
  if (calm.matches) { step(1); redraw(); return }
  const tick = now => {
    if (mine !== running) return
    const t = clamp((now - start) / 650, 0, 1)
    step(t * t * (3 - 2 * t)); redraw()
    if (t < 1) requestAnimationFrame(tick)
  }
  requestAnimationFrame(tick)
}
// bring a place of the screen to the middle, or near enough to see it and its way to the root
function centre(w, stop = 0) {
  const k = space.kappa, from = view, arc = r => k < 0 ? Math.atanh(Math.min(r, 1 - 1e-12)) : k ? Math.atan(r) : r
  const share = clamp(1 - arc(stop) / arc(hyp(...w) || 1e-9), 0, 1)
  animate(t => { const p = partway(k, w, t * share); view = compose(k, shift(k, -p[0], -p[1]), from) })
}
function home() {
  const k = space.kappa, from = view, back = here(-1), turn = compose(k, shift(k, -back[0], -back[1]), from), goal = fit()
  const angle = Math.atan2(turn[0][1], turn[0][0]), start = zoom
  // α and -α are the same motion: turn the shorter way
  const short = angle > Math.PI / 2 ? angle - Math.PI : angle < -Math.PI / 2 ? angle + Math.PI : angle
  animate(t => {
    const p = partway(k, back, t), spin = [[Math.cos(short * t), -Math.sin(short * t)], [0, 0]]
    view = compose(k, spin, compose(k, shift(k, -p[0], -p[1]), from)); zoom = start + (goal - start) * t
  })
}
function fit() {
  const far = Array.from({ length: n }, (_, i) => hyp(place.xy[2 * i], place.xy[2 * i + 1])).sort((a, b) => a - b)[Math.floor(.985 * (n - 1))] || 1
  return space.kappa < 0 ? 1 : .9 / far
}
function drag(from, to) { view = compose(space.kappa, shift(space.kappa, ...within(to)), compose(space.kappa, shift(space.kappa, ...within(from).map(v => -v)), view)); running++; redraw() }
function zoomBy(f, sx = W / 2, sy = H / 2) {
  const from = plane(sx, sy), least = fit() * .5
  zoom = clamp(zoom * f, least, 24 * least)
  drag(from, plane(sx, sy))
}
function hit(sx, sy, reach = 8) {
  const covers = i => imageAlpha[i] > .5 && Math.max(Math.abs(X[i] - sx), Math.abs(Y[i] - sy)) < size[i] / 2
  let best = data.drawn ? -1 : stack().filter(covers).pop() ?? -1, least = 1
  if (best >= 0) return best
  for (let i = 0; i < n; i++) if (visible(i)) {
    const r = Math.max(reach, imageAlpha[i] > .5 ? size[i] * .5 : 0), d = hyp(X[i] - sx, Y[i] - sy) / r - (bright(i) ? .15 : 0)
    if (d < least) { least = d; best = i }
  }
  return best
}
const pointers = new Map()
let travelled = 0, grabbed = 0
function local(e) { const b = canvas.getBoundingClientRect(); return [e.clientX - b.left, e.clientY - b.top] }
canvas.addEventListener('pointerdown', e => {
  canvas.setPointerCapture(e.pointerId); pointers.set(e.pointerId, local(e)); hover(-1)
  if (pointers.size === 1) { travelled = 0; grabbed = performance.now() } else travelled = 99
})
canvas.addEventListener('pointermove', e => {
  const now = local(e), before = pointers.get(e.pointerId)
  if (!before) { if (e.pointerType === 'mouse') hover(hit(...now), now); return }
  const others = [...pointers].filter(([id]) => id !== e.pointerId).map(p => p[1])
  travelled += hyp(now[0] - before[0], now[1] - before[1])
  if (others.length) {
    const o = others[0], mid = p => [(p[0] + o[0]) / 2, (p[1] + o[1]) / 2], gap = p => hyp(p[0] - o[0], p[1] - o[1]) || 1
    drag(plane(...mid(before)), plane(...mid(now)))
    zoomBy(gap(now) / gap(before), ...mid(now))
  } else if (travelled > 5) { canvas.classList.add('drag'); drag(plane(...before), plane(...now)) }
  pointers.set(e.pointerId, now)
})
function release(e) {
  const was = pointers.get(e.pointerId)
  pointers.delete(e.pointerId); canvas.classList.remove('drag')
  if (was && e.type === 'pointerup' && travelled <= 5) select(hit(...was, e.pointerType === 'mouse' ? 8 : 18))
}
canvas.addEventListener('pointerup', release)
canvas.addEventListener('pointercancel', release)
canvas.addEventListener('pointerleave', () => hover(-1))
canvas.addEventListener('wheel', e => { e.preventDefault(); zoomBy(Math.exp(-clamp(e.deltaY, -80, 80) / 260), ...local(e)) }, { passive: false })

// ---------- keyboard ----------
function neighbour(dx, dy) {
  const o = selected >= 0 ? [X[selected], Y[selected]] : screen(here(-1))
  let best = -1, least = Infinity
  for (let i = 0; i < n; i++) if (i !== selected && visible(i)) {
    const x = X[i] - o[0], y = Y[i] - o[1], along = x * dx + y * dy, off = Math.abs(x * dy - y * dx)
    if (along > 2 && off < along && along + 2 * off < least) { least = along + 2 * off; best = i }
  }
  return best
}
const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
canvas.addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return
  const acts = { Enter: () => selected >= 0 && centre(here(selected)), u: () => select(path.length ? path[0] : -1), U: () => select(path.length ? path[0] : -1), Home: home, h: home, Escape: () => select(-1), w: aim, W: aim, '+': () => zoomBy(1.25), '=': () => zoomBy(1.25), '-': () => zoomBy(.8) }
  if (arrows[e.key]) { const i = neighbour(...arrows[e.key]); if (i >= 0) select(i) } else if (acts[e.key]) acts[e.key](); else return
  e.preventDefault()
})
document.addEventListener('keydown', e => {
  if (/INPUT|SELECT/.test(e.target.tagName)) return
  if (e.key === '/') { e.preventDefault(); $('search').focus() }
  if (e.key === '?') { e.preventDefault(); explain() }
})

// ---------- words on the page: text is always text, never markup ----------
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag)
  for (const [k, v] of Object.entries(attributes)) k.startsWith('on') ? node.addEventListener(k.slice(2), v) : k === 'style' ? node.style.cssText = v : node.setAttribute(k, v)
  node.append(...children.filter(c => c !== null && c !== undefined))
  return node
}
const css = document.createElement('style')
document.head.append(css)
if (data.atlas) css.textContent = `.tile{background-image:url(${data.atlas})}`
function tile(i, side) {
  const t = items.tile[i]
  return t < 0 ? spot(levelOf[i]) : el('span', { class: 'tile', role: 'img', 'aria-label': items.text[i], style: `width:${side}px;height:${side}px;background-size:${data.columns * side}px auto;background-position:${-(t % data.columns) * side}px ${-Math.floor(t / data.columns) * side}px` })
}
const spot = l => el('span', { class: 'dot', style: `background:var(--level${l})` })
const fixed = (x, k = 2) => x.toFixed(k)
const median = a => { const s = [...a].sort((p, q) => p - q), m = s.length >> 1; return s.length % 2 ? s[m] : (s[m - 1] + s[m]) / 2 }
const quantile = (a, q) => [...a].sort((x, y) => x - y)[Math.round(q * (a.length - 1))]
const radii = l => byLevel[l].map(i => space.radius[i])

function hover(i, where) {
  if (where) $('tip').style.transform = `translate(${clamp(where[0] + 16, 4, W - 230)}px, ${clamp(where[1] + 14, 4, H - 90)}px)`
  if (i === hovered) return
  hovered = i; canvas.classList.toggle('point', i >= 0)
  $('tip').hidden = i < 0
  if (i >= 0) $('tip').replaceChildren(tile(i, data.large && data.large.length ? 96 : 56), el('div', {}, items.text[i], el('br'), el('small', {}, about(i))))
  redraw()
}
function about(i) {
  const words = `${levels[levelOf[i]]} · ${fixed(space.radius[i])} from the root`
  return isText(i) && coneful(space) ? `${words} · cone ±${Math.round(aperture(space, space.radius[i]) * 180 / Math.PI)}°` : words
}
const row = (i, number) => el('button', { class: 'row', onclick: () => select(i) }, el('span', {}, items.text[i]), el('span', { class: 'num' }, number))
const button = (words, act) => el('button', { onclick: act }, words)
function thumbs(list, own = new Set()) {
  if (!data.atlas) return el('div', {}, ...list.map(i => row(i, fixed(distance(i, selected), 3))))
  return el('div', { class: 'strip' }, ...list.map(i => el('button', { title: items.text[i], class: own.has(i) ? 'own' : '', onclick: () => select(i) }, tile(i, 40))))
}
function ladder() {
  const most = Math.max(...space.radius) || 1, box = el('div', { class: 'ladder' }), pc = x => 100 * x / most
  levels.forEach((_, l) => {
    const r = radii(l)
    if (!r.length) return
    const [a, m, b] = [quantile(r, .05), median(r), quantile(r, .95)]
    box.append(el('span', {}, levels[l] + 's'), el('i', { style: `--c:var(--level${l})` }, el('b', { style: `left:${pc(a)}%;width:${Math.max(1, pc(b) - pc(a))}%` }), el('u', { style: `left:${pc(m)}%` })), el('span', { class: 'num' }, fixed(m)))
  })
  return box
}
// what the radii of this very run say: are the general words nearer the root?
function ordered() {
  const known = levels.map((_, l) => l).filter(l => l !== IMAGE && byLevel[l].length), m = known.map(l => median(radii(l)))
  return known.length < 2 ? 0 : m[m.length - 1] > m[0] * 1.1 ? 2 : m[m.length - 1] > m[0] * 1.02 ? 1 : -1
}
function verdict() {
  const known = levels.map((_, l) => l).filter(l => byLevel[l].length), texts = known.filter(l => l !== IMAGE)
  const half = l => `half of the ${levels[l]}s lie within ${fixed(median(radii(l)))}`, out = median(radii(IMAGE)), last = texts[texts.length - 1]
  const how = { 2: 'nearest the root', 1: 'only a little nearer the root than the special ones', [-1]: 'no nearer the root than the special ones' }[ordered()]
  const about = how ? [`the general words lie ${how}: ${half(texts[0])}`, half(last)] : texts.map(half)
  if (known.includes(IMAGE)) about.push(!texts.length ? half(IMAGE) : out > median(radii(last)) * 1.02 ? `${thing}s lie farthest out (${fixed(out)})` : `${thing}s lie at ${fixed(out)}, not beyond the ${words}`)
  return `In this run ${about.join(', ')}.`
}
function guide() {
  const pictures = byLevel[IMAGE], some = loud[0] < 2 ? byLevel[0] : []
  const most = [...some].sort((i, j) => kids[j].length - kids[i].length || i - j)[0], fold = (title, ...c) => el('details', {}, el('summary', {}, title), ...c)
  return [el('h2', {}, 'What am I looking at?'), ...(selected >= 0 ? [el('div', { class: 'head' }, isText(selected) ? null : tile(selected, 64), el('p', {}, `A walk, for example: from ${isText(selected) ? '' : `this ${thing}, `}“${items.text[selected]}”, to the root, ever more general.`)), pathList()] : []), el('ol', { class: 'points' }, ...space.story.points.map(([lead, words]) => el('li', {}, el('b', {}, lead), ' ', words))),
    el('div', { class: 'try' },
      most >= 0 ? button(`${coneful(space) ? 'Light the cone of' : 'What lies below'} “${items.text[most]}”`, () => select(most)) : null,
      pictures.length && space.ladder.length ? button(`Walk from a ${thing} up to the root`, () => select(pictures[Math.floor(rank(selected + frames) * pictures.length)])) : null),
    el('h3', {}, 'Distance from the root'), ladder(), el('p', { class: 'soft' }, verdict() + ' Bars: nine in ten; tick: the middle one.'),
    ...space.story.more.map(([title, words]) => fold(title, el('p', {}, words))),
    fold('Hands and keys', el('p', {}, `Drag the plane, pinch or scroll to zoom, click or tap anything. A ${thing} is drawn the larger, the fewer there are, the larger the disk and the nearer the middle it lies; one without room is a dot until there is some.`), el('p', { class: 'keys' }, 'Keys: ', ...keys())),
    fold('What is exact here', el('p', {}, `${n} points with ${space.dim} numbers each, stored at ${space.bits || 16} bits. Distances, neighbours, cones and walks are computed from these, never from the picture. ${data.exact} ${place.note}${bend()}`), el('p', {}, walked()), el('p', { class: 'soft' }, `${data.shown} ${data.note || ''} ${data.credits}`))]
}
const spoken = { path: 'distance from the straight way', direction: 'direction', distance: 'distance', detour: 'detour', cone_angle: 'cone angle' }
const percent = x => `${Math.round(100 * x)} %`
// how many walks lead through their own chain, by this reading and by the others
function walked() {
  const w = space.walk
  if (!w || !w.whole) return ''
  const of = data.tree ? `words have ${data.given ? 'all texts above them' : 'their whole chain of the catalogue'}` : `${thing}s have their own ${levels[0]}`
  const rest = Object.entries(w.whole).filter(([name]) => name !== w.reading).map(([name, x]) => `${spoken[name]} ${percent(x)}`)
  const ways = w.between === null || w.between === undefined ? '' : ` Read by distance, the straight way between two ${thing}s passes the lowest text above both in ${percent(w.between)} of cases.`
  return `${data.given ? 'Walks go through what each point stands under. As the model has learned it, ' : 'Walks are '}read by ${spoken[w.reading]}, which meets the fewest others beside the chain: ${percent(w.whole[w.reading])} of ${w.count} ${of} on their walk (${rest.join(', ')}).${ways}`
}
// how curved the space is where the points are
function bend() {
  const r = Math.max(...space.radius) * Math.sqrt(space.curv)
  return space.kappa < 0 && r ? ` Around the farthest point a circle about the root is ${Math.round(100 * (Math.sinh(r) / r - 1))} % longer than in flat space: that is how much this run bends.` : ''
}
function keys() {
  return [['arrows', 'to a neighbour'], ['Enter', 'centre it'], ['U', 'one step up'], ['W', 'a way to another point'], ['Home', 'root'], ['+ −', 'zoom'], ['/', 'search'], ['Esc', 'clear']].flatMap(([k, w], i) => [i ? ', ' : '', el('kbd', {}, k), ' ' + w]).concat('.')
}
function pathList() {
  const li = (i, ...c) => el('li', { style: `--c:var(--level${i < 0 ? 9 : levelOf[i]})` }, ...c)
  const first = li(selected, el('b', {}, levelOf[selected] === IMAGE ? 'this ' + thing : items.text[selected]))
  const last = end < 0 ? li(-1, el('button', { class: 'row', onclick: home }, el('span', {}, 'the root'), el('span', { class: 'num' }, '0.00'))) : li(end, row(end, fixed(space.radius[end])))
  return el('ol', { class: 'path' }, first, ...path.map(i => li(i, row(i, fixed(space.radius[i])))), last)
}
const chain = i => { const up = []; for (let p = items.parent[i]; p >= 0; p = items.parent[p]) up.push(p); return up }
function wayReport() {
  const theirs = new Set(chain(end)), common = chain(selected).find(p => theirs.has(p)), on = path.includes(common)
  const verdict = common === undefined ? '' : ` It ${on ? 'passes' : 'does not pass'} “${items.text[common]}”, which stands above both.`
  return [el('h3', {}, `The straight way to “${items.text[end]}”`), el('p', { class: 'soft' }, `The ${words} nearest to it, step by step.${verdict}`), pathList(), button('Back to its walk', () => { end = -1; refresh() })]
}
// where a way should lead: another of the same group, the nearest that stands under another text
function partner(i) {
  const top = chain(i).pop(), other = j => j !== i && levelOf[j] === levelOf[i] && items.parent[j] !== items.parent[i]
  const kin = top === undefined ? [] : nearest(i, j => other(j) && chain(j).pop() === top, 1)
  return kin.length ? kin[0][1] : -1
}
function aim() { if (selected >= 0) { aiming = true; $('live').textContent = 'Choose where the way should end.'; $('hint').hidden = false } }
function lead(j) { end = j; aiming = false; $('hint').hidden = true; guided = false; refresh(); $('live').textContent = `The way to ${items.text[j]} passes ${path.map(k => items.text[k]).join(', ') || 'nothing'}.` }
function wayButtons() {
  const j = partner(selected)
  return el('div', { class: 'try' }, j >= 0 ? button(`The way to “${short(j)}”`, () => lead(j)) : null, button('The way to another point …', aim))
}
const belongs = data.guessed ? 'guessed to belong to it' : 'that belong to it'
const more = held => held.length > 28 ? ' The first 28:' : ''
function underReport() {
  if (readingOf(space) === 'path') return coneReport()
  const all = byLevel[IMAGE].length, mine = new Set(below(selected).filter(i => levelOf[i] === IMAGE)), held = [...lit].filter(i => levelOf[i] === IMAGE), right = held.filter(i => mine.has(i))
  if (!all) return []
  const share = `${held.length} of ${all} ${thing}s pass it on their walk to the root` + (mine.size ? `, ${right.length} of the ${mine.size} ${belongs} (green frames).` : '.')
  return [el('h3', {}, `${thing}s below it`), el('p', {}, share + more(held)), thumbs(held.slice(0, 28), mine)]
}
function coneReport() {
  if (!space.cones) return [el('h3', {}, 'Its cone'), el('p', { class: 'soft' }, space.kappa < 0 ? 'No cones were asked for here: the nearest to a point is what lies above it.' : 'This space has no cones: it can say “near”, but not “more general”.')]
  const held = [...lit].filter(i => levelOf[i] === IMAGE), mine = new Set(below(selected).filter(i => levelOf[i] === IMAGE)), right = held.filter(i => mine.has(i))
  const all = byLevel[IMAGE].length, first = [...right, ...held.filter(i => !mine.has(i))].slice(0, 28)
  const share = all ? `Its cone holds ${held.length} of ${all} ${thing}s` + (mine.size ? `, ${right.length} of the ${mine.size} ${belongs} (green frames).` : '.') + (held.length ? '' : ` ${space.dim} dimensions leave much room beside it, whatever the shaded region in the plane suggests.`) : `There are no ${thing}s here.`
  return [el('h3', {}, 'Its cone: what it may stand for'), el('p', {}, share + more(held)), thumbs(first, mine), el('p', { class: 'soft' }, 'Lit in the plane is what the real cone holds; shaded, how wide such a cone looks there.')]
}
function report() {
  const i = selected, texts = nearest(i, isText, 6), pictures = nearest(i, j => !isText(j), 12), large = photo(i), head = levelOf[i] === IMAGE && !large ? tile(i, 88) : null
  const truth = chain(i).map(p => items.text[p])
  return [large, el('div', { class: 'head' }, head, el('div', {}, el('h2', {}, items.text[i] + (data.guessed && !isText(i) ? '?' : '')), el('div', { class: 'soft' }, spot(levelOf[i]), ' ', about(i)))),
    truth.length && !data.given ? el('p', { class: 'soft' }, (data.tree ? 'In the catalogue: ' : 'Belongs to: ') + truth.join(' › ')) : null,
    ...(end >= 0 ? wayReport() : !space.ladder.length ? [] : [el('h3', {}, 'Walk to the root'), el('p', { class: 'soft' }, said(i).length ? (data.guessed ? 'A guess: what its nearest nouns agree on.' : 'What it stands under, from special to general.') : readingOf(space) !== 'path' ? `${isText(i) ? '' : 'The surest first, then f'}${isText(i) ? 'F' : ''}rom outside in: each of the ${words} that no other nearer to the root surpasses, read by ${spoken[readingOf(space)]}.` : coned ? `Met on the straight way from here to the root: at each step the nearest of the ${words} whose cone holds that step.` : space.cones ? `No cone holds any step of the straight way to the root. The nearest ${words} on it, cones aside (dashed):` : `The nearest ${words} on the straight way to the middle.`), pathList(), data.given && !said(i).length ? el('p', { class: 'soft' }, 'So the model has learned it; nobody said so.') : null, wayButtons()]),
    ...(isText(i) && end < 0 ? underReport() : []),
    ...(texts.length ? [el('h3', {}, `Nearest ${words}`)] : []), ...texts.map(([d, j]) => row(j, fixed(d, 3))),
    ...(pictures.length ? [el('h3', {}, `Nearest ${thing}s`), thumbs(pictures.map(p => p[1]))] : []),
    el('div', { class: 'try', style: 'margin-top:18px' }, button('Centre this', () => centre(here(selected))), button('What am I looking at?', explain))]
}
// a photo by itself, as large as the page holds it
function photo(i) {
  const t = items.tile[i]
  return data.large && data.large[t] ? el('img', { class: 'photo', alt: items.text[i], src: 'data:image/webp;base64,' + data.large[t] }) : null
}
function refresh() {
  path = []; close = []; lit = null; coned = false
  if (end >= 0) { path = between(selected, end); lit = new Set(); coned = true } else if (selected >= 0) {
    path = route(selected)
    if (!guided) {
      const byCone = coneful(space), kin = isText(selected) ? isText : j => !isText(j)
      close = nearest(selected, kin, 6)
      lit = new Set(!isText(selected) ? close.map(p => p[1]) : byCone ? inside(selected) : readingOf(space) !== 'path' ? under(selected) : close.map(p => p[1]))
    }
  }
  $('about').replaceChildren(...(selected >= 0 && !guided ? report() : guide()).filter(Boolean))
  $('panel').scrollTop = 0
  redraw()
}
// as the page opens: on something that walks
function explain() { select(-1); selected = space.walk ? space.walk.start : -1; refresh() }
// what an item of one's own data stands under, from special to general
const said = i => data.given ? chain(i) : []
function route(i, s = space) {
  const own = said(i)
  if (own.length) { coned = true; return own }
  if (readingOf(s) !== 'path') { coned = true; return climb(i, s) }
  const met = walk(i, s)
  coned = s.cones && met.length > 0
  return met.length ? met : walk(i, s, false)
}
function select(i) {
  if (aiming && i >= 0 && i !== selected) return lead(i)
  aiming = false; $('hint').hidden = true; end = -1; guided = i < 0
  selected = i; hover(-1); locate(); refresh()
  if (i < 0) { $('live').textContent = 'Nothing selected.'; return }
  $('live').textContent = `${items.text[i]}, ${about(i)}. On the way to the root: ${path.map(j => items.text[j]).join(', ') || 'nothing'}.`
  centre(here(i), .4)
}

// ---------- choices ----------
function put(next) { place = next; animate((from => t => { for (let k = 0; k < 2 * n; k++) at[k] = from[k] + (next.xy[k] - from[k]) * t })(at.slice())); note() }
function note() { $('note').textContent = `${space.title}, ${space.dim} dimensions. ${place.note}` }
function enter(next) {
  space = next.v ? next : unpack(next); hover(-1)
  place = space.places[0]; view = still(); zoom = fit()
  $('layout').replaceChildren(...space.places.map((p, k) => el('option', { value: k }, p.name)))
  for (const b of $('spaces').children) b.setAttribute('aria-pressed', b.textContent === space.name)
  $('key').hidden = space.kappa > 0 || ordered() < 1
  put(place); refresh()
}
function listHits(words) {
  const want = words.toLowerCase().trim(), box = $('hits')
  // whole words first, then their beginnings, then what merely contains it
  const worse = i => { const t = ` ${items.text[i].toLowerCase().replace(/[^\p{L}\p{N}]+/gu, ' ')} `; return t.includes(` ${want} `) ? 0 : t.includes(` ${want}`) ? 1 : 2 }
  const found = want ? order.filter(i => items.text[i].toLowerCase().includes(want)).sort((i, j) => worse(i) - worse(j) || items.text[i].length - items.text[j].length) : []
  const spread = levels.flatMap((_, l) => found.filter(i => levelOf[i] === l).slice(0, 5))
  box.replaceChildren(...spread.map((i, k) => el('li', { role: 'option', id: 'hit' + k, 'data-item': i, 'aria-selected': k === 0, onmousedown: e => { e.preventDefault(); choose(i) } }, tile(i, 26), el('span', {}, items.text[i]), el('span', { class: 'num', style: 'margin-left:auto' }, levels[levelOf[i]]))))
  if (want && !spread.length) box.replaceChildren(el('li', {}, 'Nothing has these words.'))
  box.hidden = !want; $('search').setAttribute('aria-expanded', !!want)
  $('search').setAttribute('aria-activedescendant', spread.length ? 'hit0' : '')
}
function choose(i) { $('hits').hidden = true; $('search').setAttribute('aria-expanded', 'false'); select(i); canvas.focus() }
function step(by) {
  const all = [...$('hits').querySelectorAll('[role=option]')], now = all.findIndex(o => o.getAttribute('aria-selected') === 'true')
  if (!all.length) return
  const next = (now + by + all.length) % all.length
  all.forEach((o, k) => o.setAttribute('aria-selected', k === next))
  all[next].scrollIntoView({ block: 'nearest' }); $('search').setAttribute('aria-activedescendant', all[next].id)
}
$('search').addEventListener('input', e => listHits(e.target.value))
$('search').addEventListener('blur', () => { $('hits').hidden = true })
$('search').addEventListener('keydown', e => {
  if (e.key === 'ArrowDown') step(1); else if (e.key === 'ArrowUp') step(-1)
  else if (e.key === 'Enter') { const o = $('hits').querySelector('[aria-selected=true]'); if (o) choose(+o.dataset.item) } else if (e.key === 'Escape') { $('hits').hidden = true; canvas.focus() } else return
  e.preventDefault()
})
function theme(name) { document.documentElement.dataset.theme = name; readColours(); redraw() }
$('grip').addEventListener('click', () => document.body.classList.toggle('tall'))
$('home').addEventListener('click', home)
$('guide').addEventListener('click', explain)
$('theme').addEventListener('click', () => theme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark'))
$('group').hidden = groups.length < 2 || groups.length > 60
$('group').append(el('option', { value: -1 }, 'all groups'), ...groups.map((g, k) => el('option', { value: k }, g)))
$('group').addEventListener('change', e => { group = +e.target.value; redraw() })
$('layout').addEventListener('change', e => put(space.places[+e.target.value]))
levels.forEach((_, l) => {
  if (!byLevel[l].length) return
  const box = el('input', { type: 'checkbox', onchange: e => { shown[l] = e.target.checked; redraw() } })
  box.checked = shown[l]
  $('levels').append(el('label', { class: 'chip' }, box, spot(l), levels[l] + 's'))
})
if (spaces.length > 1) $('spaces').append(...spaces.map(s => el('button', { title: s.title, 'aria-pressed': 'false', onclick: () => enter(s) }, s.name)))
$('title').textContent = data.title
const wish = matchMedia('(prefers-color-scheme: dark)')
theme(wish.matches ? 'dark' : 'light')
wish.addEventListener('change', e => theme(e.matches ? 'dark' : 'light'))
new ResizeObserver(resize).observe(canvas)
at.set(place.xy)
resize(); enter(space)
explain()
// for the curious, and for the tests
window.meru = { data, select, distance, inside, walk, climb, route, under, between, nearest, aim, lead, explain, home, enter, get space() { return space }, get selected() { return selected }, get path() { return path }, get end() { return end }, get guided() { return guided }, get lit() { return lit }, get drawn() { return stack().map(i => [i, size[i]]) }, get view() { return view }, get scale() { return S }, get frames() { return frames }, where: i => { locate(); return i < 0 ? screen(here(-1)) : [X[i], Y[i]] } }
