"use strict";
// Says in words what the picture shows at one moment: under the pointer, the finger, or by the arrow keys.
(() => {
  const moments = [...document.querySelectorAll("#moments rect")];
  const reading = document.getElementById("reading");
  let at = -1;
  const show = (to) => {
    if (to === at || to < 0 || to >= moments.length) return;
    if (at >= 0) moments[at].classList.remove("on");
    at = to;
    moments[at].classList.add("on");
    reading.textContent = moments[at].querySelector("title").textContent;
  };
  const picture = document.getElementById("picture");
  const point = (event) => show(moments.indexOf(event.target));
  picture.addEventListener("pointermove", point);
  picture.addEventListener("pointerdown", point);
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -moments.length, End: moments.length }[event.key];
    if (!step) return;
    event.preventDefault();
    show(Math.min(Math.max(at + step, 0), moments.length - 1));
  });
  if (moments.length > 0) reading.textContent = moments[0].querySelector("title").textContent;
})();
