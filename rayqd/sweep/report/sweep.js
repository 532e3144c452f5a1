// The pointer over a trial, in any chart or in the table: the same trial everywhere.
const light = (number) => {
  document.body.classList.toggle("lighting", number !== undefined);
  for (const mark of document.querySelectorAll("[data-trial]")) mark.classList.toggle("lit", mark.dataset.trial === number);
};
for (const mark of document.querySelectorAll("[data-trial]")) {
  mark.addEventListener("pointerenter", () => light(mark.dataset.trial));
  mark.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && light(undefined));
}
document.addEventListener("pointerdown", (event) => event.target.closest("[data-trial]") || light(undefined));
