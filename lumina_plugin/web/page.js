// Each part is the body of a function that Gradio calls once, with `element`, `props`, `trigger` and `watch`.
//# clicks
// A click on anything that carries data becomes an event for the server; what was chosen is marked.
element.addEventListener('click', (event) => {
  const cell = event.target.closest('button[data-segment]');
  if (cell) {
    element.querySelectorAll('.playing').forEach((other) => other.classList.remove('playing'));
    cell.classList.add('playing');
    trigger('listen', {segment: Number(cell.dataset.segment), song: cell.dataset.song});
    return;
  }
  const page = event.target.closest('button[data-page]');
  if (page) {
    trigger('turn', {page: Number(page.dataset.page)});
    return;
  }
  const song = event.target.closest('button[data-song]');
  if (song) {
    element.querySelectorAll('.chosen').forEach((other) => other.classList.remove('chosen'));
    song.classList.add('chosen');
    trigger('pick', {song: song.dataset.song});
  }
});
//# player
// A and B: one plays at a time; switching goes on at the same second of the other.
const sides = () => [...element.querySelectorAll('.side')];
const show = (side) => sides().forEach((other) => other.classList.toggle('on', other === side));
element.addEventListener('play', (event) => {
  sides().forEach((side) => { if (!side.contains(event.target)) side.querySelector('audio').pause(); });
  show(event.target.closest('.side'));
}, true);
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-close]')) props.value = '';
  if (!event.target.closest('[data-flip]')) return;
  const now = sides().find((side) => side.classList.contains('on'));
  const next = sides().find((side) => side !== now);
  const from = now.querySelector('audio'), to = next.querySelector('audio');
  from.pause();
  to.currentTime = Math.min(from.currentTime, Number.isFinite(to.duration) ? Math.max(0, to.duration - 0.1) : from.currentTime);
  show(next);
  to.play().catch(() => {});  // a browser may ask for a click on the player itself
});
watch('value', () => {
  const first = element.querySelector('.side audio');
  if (!first) return;
  element.scrollIntoView({block: 'nearest', behavior: 'smooth'});
  first.play().catch(() => {});
});
