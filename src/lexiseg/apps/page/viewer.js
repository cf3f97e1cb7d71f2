// The picture with its regions. Runs once, when the page is there; `element`, `props` and `watch` come from gradio.
// props.value is the text that viewing.view makes, or nothing.

const text = (tag, words, name) => {
  const made = document.createElement(tag);
  if (words !== undefined) made.textContent = words; // never as HTML: words are what people typed
  if (name) made.className = name;
  return made;
};
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const loaded = (address) =>
  new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = address;
  });
const save = (name, content, kind) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};

let latest = 0;
let unbind = () => {};

async function show(value) {
  const turn = ++latest;
  unbind();
  const home = element.querySelector(".viewer");
  home.replaceChildren();
  home.classList.toggle("filled", Boolean(value));
  if (!value) {
    home.append(text("p", "The picture with its regions will be here.", "hint"));
    return;
  }
  const told = JSON.parse(value);
  const { width, height, regions } = told;
  const pictures = await Promise.all([told.photo, ...told.layers].map(loaded));
  if (turn !== latest) return; // a newer result has come meanwhile

  const photo = pictures[0];
  const scratch = document.createElement("canvas");
  scratch.width = width;
  scratch.height = height;
  const pen = scratch.getContext("2d", { willReadFrequently: true });
  const layers = pictures.slice(1).map((picture) => {
    pen.drawImage(picture, 0, 0);
    const bytes = pen.getImageData(0, 0, width, height).data;
    const ids = new Uint16Array(width * height);
    for (let i = 0; i < ids.length; i++) ids[i] = bytes[4 * i] + 256 * bytes[4 * i + 1];
    return ids;
  });
  const names = {};
  const several = (label) => regions.filter((region) => region.label === label).length > 1;
  const shownName = regions.map((region) => {
    names[region.label] = (names[region.label] || 0) + 1;
    return several(region.label) ? `${region.label} ${names[region.label]}` : region.label;
  });
  const on = regions.map(() => true);
  const seen = new Uint16Array(width * height); // the region that is visible at each pixel, plus one
  let opacity = 0.45;
  let withWords = true;
  let marked = 0;

  // ------------------------------------------------------------------------------------------------- the elements
  const stage = text("div", undefined, "stage");
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Your photo with ${regions.length} coloured regions; the table below lists them`);
  const tip = text("div", undefined, "tip");
  tip.hidden = true;
  stage.append(canvas, tip);

  const controls = text("div", undefined, "controls");
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 45, className: "opacity" });
  const sliderLabel = text("label", "Colour ");
  sliderLabel.append(slider);
  const wordsBox = document.createElement("input");
  Object.assign(wordsBox, { type: "checkbox", checked: true });
  const wordsLabel = text("label");
  wordsLabel.append(wordsBox, " Words on the picture");
  controls.append(sliderLabel, wordsLabel);

  const downloads = text("div", undefined, "downloads");
  downloads.append(text("span", "Save:"));
  const button = (label, hint, act) => {
    const made = text("button", label);
    made.type = "button";
    made.title = hint;
    made.addEventListener("click", act);
    downloads.append(made);
  };
  button("Picture (PNG)", "The picture as you see it", () =>
    canvas.toBlob((blob) => save(`${told.stem}.overlay.png`, blob), "image/png"),
  );
  button("Data (JSON)", "All regions with their scores and masks", () =>
    save(`${told.stem}.json`, told.json, "application/json"),
  );
  button("COCO", "All regions in the format that labelling tools read", () =>
    save(`${told.stem}.coco.json`, told.coco, "application/json"),
  );

  const table = document.createElement("table");
  const head = document.createElement("tr");
  const all = document.createElement("input");
  Object.assign(all, { type: "checkbox", checked: true, title: "All on or off" });
  all.setAttribute("aria-label", "All regions on or off");
  const first = document.createElement("th");
  first.append(all);
  const title = (words, hint) => {
    const made = text("th", words);
    made.title = hint;
    return made;
  };
  head.append(
    first,
    text("th", "Found"),
    title("Part of photo", "How much of the photo it covers"),
    title("Match", "How well the word fits, among the words you gave"),
  );
  const thead = document.createElement("thead");
  thead.append(head);
  const body = document.createElement("tbody");
  const rows = [];
  const boxes = regions.map((region, index) => {
    const row = document.createElement("tr");
    rows.push(row);
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", checked: true });
    box.setAttribute("aria-label", `Show ${shownName[index]}`);
    box.addEventListener("change", () => {
      on[index] = box.checked;
      refresh();
    });
    const cell = document.createElement("td");
    cell.append(box);
    const word = document.createElement("td");
    const swatch = text("span", undefined, "swatch");
    swatch.style.background = `rgb(${region.color})`;
    const name = text("div", undefined, "name");
    name.append(swatch, text("span", shownName[index]));
    word.append(name);
    const share = text("td", percent(region.share), "number");
    const bar = text("span", undefined, "bar");
    bar.style.cssText = `width:${Math.max(1, 60 * region.share)}px;background:rgb(${region.color})`;
    share.prepend(bar);
    row.append(cell, word, share, text("td", percent(region.score), "number"));
    row.addEventListener("mouseenter", () => mark(index + 1));
    row.addEventListener("mouseleave", () => mark(0));
    row.addEventListener("click", (event) => {
      if (event.target !== box) box.click();
    });
    return box;
  });
  const bySize = regions.map((_, index) => index).sort((a, b) => regions[b].share - regions[a].share);
  body.append(...bySize.map((index) => rows[index]));
  all.addEventListener("change", () => {
    boxes.forEach((box, index) => {
      box.checked = on[index] = all.checked;
    });
    refresh();
  });
  table.append(thead, body);
  const frame = text("div", undefined, "table");
  frame.append(table);
  home.append(stage, controls, downloads);
  home.append(regions.length ? frame : text("p", "None of these words was found in this photo.", "hint"));
  if (regions.length && told.missing.length) {
    home.append(text("p", `Not found: ${told.missing.join(", ")}`, "hint missing"));
  }

  // ------------------------------------------------------------------------------------------------------ drawing
  function refresh() {
    for (let i = 0; i < seen.length; i++) {
      seen[i] = 0;
      for (const layer of layers) {
        if (layer[i] && on[layer[i] - 1]) {
          seen[i] = layer[i];
          break;
        }
      }
    }
    rows.forEach((row, index) => row.classList.toggle("off", !on[index]));
    all.checked = on.every(Boolean);
    all.indeterminate = on.some(Boolean) && !all.checked;
    draw();
  }

  function draw() {
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(photo, 0, 0);
    const picture = pen.getImageData(0, 0, width, height);
    const bytes = picture.data;
    for (let i = 0; i < seen.length; i++) {
      const id = seen[i];
      if (!id) continue;
      const color = regions[id - 1].color;
      const edge =
        opacity > 0 &&
        ((i % width && seen[i - 1] !== id) || (i >= width && seen[i - width] !== id) || seen[i + 1] !== id);
      const part = edge ? 0.9 : id === marked ? Math.min(0.9, opacity + 0.25) : opacity;
      for (let c = 0; c < 3; c++) {
        const paint = edge ? color[c] / 2 + 127 : color[c];
        bytes[4 * i + c] += part * (paint - bytes[4 * i + c]);
      }
    }
    pen.putImageData(picture, 0, 0);
    if (withWords) writeWords(pen);
  }

  function writeWords(pen) {
    const size = 13 * Math.max(1, width / (canvas.clientWidth || width));
    pen.font = `600 ${size}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    const taken = [];
    for (const index of bySize) {
      const region = regions[index];
      if (!on[index] || !region.at) continue;
      const boxWidth = pen.measureText(region.label).width + size;
      const boxHeight = 1.6 * size;
      if (region.share * width * height < 0.5 * boxWidth * boxHeight) continue; // it would hide what it names
      const x = Math.min(Math.max(region.at[0] * width - boxWidth / 2, 2), width - boxWidth - 2);
      const y = Math.min(Math.max(region.at[1] * height - boxHeight / 2, 2), height - boxHeight - 2);
      const free = taken.every(
        (other) => x > other.x + other.w || other.x > x + boxWidth || y > other.y + other.h || other.y > y + boxHeight,
      );
      if (!free) continue;
      taken.push({ x, y, w: boxWidth, h: boxHeight });
      pen.fillStyle = `rgb(${region.color})`;
      pen.beginPath();
      pen.roundRect(x, y, boxWidth, boxHeight, 0.35 * size);
      pen.fill();
      const [r, g, b] = region.color.map((part) => (part / 255) ** 2.2);
      pen.fillStyle = 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "black" : "white";
      pen.fillText(region.label, x + size / 2, y + boxHeight / 2);
    }
  }

  // ------------------------------------------------------------------------------------------------ the pointer
  function mark(id) {
    if (id === marked) return;
    marked = id;
    rows.forEach((row, index) => row.classList.toggle("marked", index + 1 === id));
    draw();
  }

  function point(event) {
    const place = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - place.left) / place.width) * width);
    const y = Math.floor(((event.clientY - place.top) / place.height) * height);
    const id = x >= 0 && y >= 0 && x < width && y < height ? seen[y * width + x] : 0;
    mark(id);
    tip.hidden = !id;
    if (!id) return;
    const region = regions[id - 1];
    tip.replaceChildren(text("b", shownName[id - 1]), text("span", ` ${percent(region.score)} match`));
    if (region.next.length) {
      const others = region.next.map(([word, score]) => `${word} ${percent(score)}`).join(", ");
      tip.append(text("div", `next: ${others}`, "next"));
    }
    const left = event.clientX - place.left;
    const top = event.clientY - place.top;
    tip.style.left = `${Math.max(0, Math.min(left + 14, place.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${top + 18 + tip.offsetHeight > place.height ? top - tip.offsetHeight - 10 : top + 18}px`;
  }
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", () => {
    tip.hidden = true;
    mark(0);
  });
  slider.addEventListener("input", () => {
    opacity = slider.value / 100;
    draw();
  });
  wordsBox.addEventListener("change", () => {
    withWords = wordsBox.checked;
    draw();
  });
  window.addEventListener("resize", draw);
  unbind = () => window.removeEventListener("resize", draw);
  refresh();
  if (window.innerWidth < 768) stage.scrollIntoView({ behavior: "smooth", block: "start" });
}

watch("value", () => show(props.value));
show(props.value);
