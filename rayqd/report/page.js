// The pointer over a chart: a line at the nearest step, and its values in the legend.
for (const figure of document.querySelectorAll("figure[data-lines]")) {
  const svg = figure.querySelector("svg"), cursor = svg.querySelector(".cursor");
  const at = figure.querySelector(".at"), outputs = [...figure.querySelectorAll("output")];
  const last = outputs.map((output) => output.textContent);
  const { left, right, low, high, across, lines } = JSON.parse(figure.dataset.lines);
  const steps = [...new Set(lines.flatMap((line) => line.map(([x]) => x)))].sort((a, b) => a - b);
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const wanted = low + ((place - left) / (right - left)) * (high - low);
    const step = steps.reduce((best, x) => (Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best));
    const x = left + ((step - low) / (high - low || 1)) * (right - left);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.style.visibility = "visible";
    at.textContent = `${across} ${step.toLocaleString("en")}`;
    lines.forEach((line, i) => {
      const point = line.find(([x]) => x === step);
      outputs[i].textContent = point ? point[1] : "–";
    });
  };
  const hide = () => {
    cursor.style.visibility = "hidden";
    at.textContent = "";
    outputs.forEach((output, i) => (output.textContent = last[i]));
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
