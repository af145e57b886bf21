'use strict';
// Everything that comes from the folder is set as text or as a number: nothing of it becomes HTML.
const get = id => document.getElementById(id);
const made = (tag, text) => Object.assign(document.createElement(tag), {textContent: text ?? ''});
const gallery = window.gallery = {file: null, row: -1, asked: 0, answered: 0, about: null};

async function json(path, body) {
  const answer = await fetch(path, body ? {method: 'POST', body} : {});
  const value = await answer.json().catch(() => ({error: 'the server did not answer: is it still running?'}));
  if (!answer.ok) throw new Error(value.error);
  return value;
}

function note(text, wrong = false) {
  get('note').textContent = text;
  get('note').className = wrong ? 'wrong' : '';
}

function picture(row, alt) {
  return Object.assign(new Image(), {src: `/picture/${row}`, alt, loading: 'lazy'});
}

function withPicture(name, src) {
  get('with').hidden = !name;
  get('with-name').textContent = name;
  if (src) get('shown').src = src; else get('shown').removeAttribute('src');
}

async function search() {
  const text = get('text').value.trim(), mine = ++gallery.asked;
  if (!text && !gallery.file && gallery.row < 0) return note('Type some words, or choose a picture.');
  const query = new URLSearchParams({text, row: gallery.row, generality: get('generality').value / 100});
  note('Searching…');
  try {
    const hits = await json(`/search?${query}`, gallery.file);
    if (mine !== gallery.asked) return;  // a later question is on its way
    get('hits').replaceChildren(...hits.map(card));
    note(`The nearest ${hits.length} of ${gallery.about.pictures.toLocaleString()} pictures, at distances from ${hits[0].distance} to ${hits.at(-1).distance}.`);
  } catch (error) {
    if (mine === gallery.asked) note(error.message, true);
  }
  gallery.answered = mine;
}

function card(hit) {
  const button = made('button');
  button.append(picture(hit.row, hit.file), made('span', hit.file));
  if ('distance' in hit) button.title = `distance ${hit.distance}, ${hit.radius} from the root`;
  button.addEventListener('click', () => open_(hit));
  return button;
}

async function open_(hit) {
  gallery.open = hit;
  get('one-picture').src = `/picture/${hit.row}`;
  get('one-picture').alt = hit.file;
  get('one-name').textContent = hit.file;
  get('path').replaceChildren();
  get('also').hidden = !get('text').value.trim();
  get('one').showModal();
  if (!gallery.about.root) return;
  try {
    const stops = await json(`/walk/${hit.row}`);
    if (gallery.open === hit) get('path').replaceChildren(...stops.map(stop));
  } catch (error) {
    get('path').replaceChildren(made('li', error.message));
  }
}

function stop(met) {
  const item = made('li');
  if (met.row >= 0) item.append(picture(met.row, met.text));
  if (met.text === '[root]') item.append('the root, under which everything lies');
  else item.append(made('span', met.text), ' ', made('small', `met at ${met.radius} from the root`));
  return item;
}

function choose(row, keepText) {
  get('one').close();
  gallery.file = null;
  gallery.row = row;
  withPicture(gallery.open.file, `/picture/${row}`);
  if (!keepText) get('text').value = '';
  search();
}

get('form').addEventListener('submit', event => { event.preventDefault(); search(); });
get('file').addEventListener('change', event => {
  gallery.file = event.target.files[0] ?? null;
  gallery.row = -1;
  withPicture(gallery.file?.name ?? '', gallery.file && URL.createObjectURL(gallery.file));
  if (gallery.file) search();
});
get('without').addEventListener('click', () => {
  gallery.file = null;
  gallery.row = -1;
  get('file').value = '';
  withPicture('');
  search();
});
get('generality').addEventListener('input', event => { get('level').textContent = `${event.target.value} %`; });
get('generality').addEventListener('change', search);
get('like').addEventListener('click', () => choose(gallery.open.row, false));
get('also').addEventListener('click', () => choose(gallery.open.row, true));

json('/about').then(about => {
  gallery.about = about;
  document.title = about.name;
  get('name').textContent = about.name;
  get('slide').hidden = !about.radii;  // on one shell no question orders pictures otherwise
  get('path-part').hidden = !about.root;
  const left = about.left_out ? `, ${about.left_out} files left out` : '';
  get('hits').replaceChildren(...about.some.map(card));
  note(`${about.some.length} of ${about.pictures.toLocaleString()} pictures${left}. Type some words, or choose a picture.`);
}, error => note(error.message, true));
