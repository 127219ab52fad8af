"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (data === null) return;
  const SVG = "http://www.w3.org/2000/svg";
  const SIDE = 3, MARGIN = 0.3;
  const byId = (id) => document.getElementById(id);

  function element(name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function fill(select, names) {
    names.forEach((name, index) => select.add(new Option(name, index)));
  }

  // The margin, in pixels of the image, has room for sampling places that lie outside the image.
  function picture(image, label, margin = 0) {
    const svg = element("svg", {role: "img", "aria-label": label, viewBox:
      `${-margin} ${-margin} ${image.width + 2 * margin} ${image.height + 2 * margin}`});
    svg.append(element("image", {href: image.picture, width: image.width, height: image.height,
      preserveAspectRatio: "none"}));
    return svg;
  }

  // ---- detections beside the ground truth

  function boxes(image, listed, label) {
    const holder = document.createElement("figure"), svg = picture(image, label);
    const caption = document.createElement("figcaption");
    caption.textContent = `${label} (${listed.length})`;
    const unit = Math.max(image.width, image.height) / 100;
    for (const [x, y, width, height, name] of listed) {
      for (const [color, thick] of [["white", 1], ["black", 0.5]]) {
        svg.append(element("rect", {x, y, width, height, fill: "none", stroke: color,
          "stroke-width": thick * unit}));
      }
      svg.append(element("text", {x: x + unit, y: y + 4 * unit, "font-size": 3.5 * unit,
        stroke: "white", "stroke-width": 0.8 * unit, "paint-order": "stroke"}, name));
    }
    holder.append(caption, svg);
    return holder;
  }

  function showPair() {
    const image = data.images[byId("pair-image").value];
    byId("pair").replaceChildren(
      boxes(image, image.truth, "ground truth"),
      ...data.arms.map((arm) => boxes(image, image.found[arm], arm)));
  }

  // ---- the explorer

  function decoded(text, Type) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Type(bytes.buffer);
  }

  const state = {y: 0, x: 0};  // the cell of the stage's feature map that is explored
  let cached = {};

  function current() {
    const image = data.images[byId("image").value];
    const arm = data.mapped[byId("arm").value];
    const stage = data.stages[byId("stage").value];
    const key = [byId("image").value, arm, stage].join();
    if (cached.key !== key) {
      const map = data.maps[arm][byId("image").value][stage];
      cached = {key, image, arm, stage, map,
        offsets: map.deformable ? decoded(map.offsets, Int16Array) : null,
        masks: map.deformable ? decoded(map.masks, Uint8Array) : null};
    }
    return cached;
  }

  // The distance between neighbouring cells of the feature map in pixels of the image, (y, x).
  const cellSize = (map) => [0, 1].map((axis) => map.pixels[axis] * map.stride[axis]);
  // Where a place (y, x) in the layer's input, whose first cell is 0, lies in the image.
  const inImage = (map, place) => place.map((p, axis) => map.origin[axis] + p * map.pixels[axis]);

  function taps(shown) {
    const {map, offsets, masks} = shown, [height, width] = map.size;
    const rows = Math.ceil(height / map.step), columns = Math.ceil(width / map.step);
    const kept = Math.floor(state.y / map.step) * columns + Math.floor(state.x / map.step);
    const found = [];
    for (let tap = 0; tap < SIDE * SIDE; ++tap) {
      const cell = [state.y, state.x], along = [Math.floor(tap / SIDE), tap % SIDE];
      const plain = [0, 1].map((axis) => cell[axis] * map.stride[axis] - map.padding[axis]
        + along[axis] * map.dilation[axis]);
      const moved = [0, 1].map((axis) => plain[axis] + (offsets === null ? 0
        : offsets[(2 * tap + axis) * rows * columns + kept] / map.scales[0]));
      const mask = masks === null ? 1 : masks[tap * rows * columns + kept] / map.scales[1];
      found.push({plain: inImage(map, plain), moved: inImage(map, moved), mask});
    }
    return found;
  }

  function dilation(found, map) {
    const at = (i, j) => found[SIDE * i + j].moved.map((p, axis) => p / map.pixels[axis]);
    let total = 0, number = 0;
    for (let i = 0; i < SIDE; ++i) {
      for (let j = 0; j < SIDE; ++j) {
        for (const [di, dj] of [[1, 0], [0, 1]]) {
          if (i + di >= SIDE || j + dj >= SIDE) continue;
          const [a, b] = [at(i, j), at(i + di, j + dj)];
          total += Math.hypot(a[0] - b[0], a[1] - b[1]);
          ++number;
        }
      }
    }
    return total / number;
  }

  function show() {
    const shown = current(), {image, map} = shown, unit = Math.max(image.width, image.height) / 100;
    state.y = Math.min(state.y - state.y % map.step, map.size[0] - 1);
    state.x = Math.min(state.x - state.x % map.step, map.size[1] - 1);
    const found = taps(shown), [cellY, cellX] = cellSize(map);
    const svg = picture(image, `${image.name}, ${shown.arm}, ${shown.stage}`, MARGIN * 100 * unit);
    const x = map.origin[1] + state.x * cellX, y = map.origin[0] + state.y * cellY;
    for (const [color, thick] of [["white", 0.9], ["black", 0.4]]) {
      svg.append(element("path", {d: `M${x - 3 * unit} ${y}h${6 * unit}M${x} ${y - 3 * unit}v${6 * unit}`,
        stroke: color, "stroke-width": thick * unit}));
    }
    for (const {plain, moved} of found) {
      if (!map.deformable) continue;
      svg.append(element("line", {x1: plain[1], y1: plain[0], x2: moved[1], y2: moved[0],
        stroke: "white", "stroke-width": 0.3 * unit}));
    }
    for (const {plain} of found) {
      for (const [color, thick] of [["white", 0.8], ["black", 0.35]]) {
        svg.append(element("rect", {x: plain[1] - unit, y: plain[0] - unit, width: 2 * unit,
          height: 2 * unit, fill: "none", stroke: color, "stroke-width": thick * unit, class: "plain"}));
      }
    }
    for (const {moved, mask} of map.deformable ? found : []) {
      svg.append(element("circle", {cx: moved[1], cy: moved[0],
        r: (0.5 + 0.7 * Math.sqrt(mask)) * unit, fill: "black", stroke: "white",
        "stroke-width": 0.3 * unit, "fill-opacity": Math.min(1, 0.1 + 0.9 * mask), class: "sampled",
        "data-mask": mask}));
    }
    const focused = document.activeElement === byId("explorer");
    byId("explorer").replaceChildren(svg);
    if (focused) byId("explorer").focus();
    const masks = found.map((tap) => tap.mask);
    byId("readout").textContent = `${shown.stage}, ${map.layer}, cell ${state.x},${state.y} of `
      + `${map.size[1]}x${map.size[0]}: ` + (map.deformable
        ? `effective dilation ${dilation(found, map).toFixed(2)}` + (map.modulated
          ? `, masks ${Math.min(...masks).toFixed(2)} to ${Math.max(...masks).toFixed(2)}` : "")
        + (map.groups > 1 ? `; only the first of ${map.groups} offset groups is shown.` : ".")
        : `a plain convolution, dilation ${map.dilation[0]}.`);
  }

  function point(event) {
    const shown = current(), box = byId("explorer").firstChild.getBoundingClientRect();
    const [cellY, cellX] = cellSize(shown.map);
    const margin = MARGIN * Math.max(shown.image.width, shown.image.height);
    const scale = (shown.image.width + 2 * margin) / box.width;
    const [originY, originX] = shown.map.origin;
    const y = ((event.clientY - box.top) * scale - margin - originY) / cellY;
    const x = ((event.clientX - box.left) * scale - margin - originX) / cellX;
    state.y = Math.max(0, Math.min(shown.map.size[0] - 1, Math.round(y)));
    state.x = Math.max(0, Math.min(shown.map.size[1] - 1, Math.round(x)));
    show();
  }

  const STEPS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};

  function key(event) {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const {map} = current(), [dy, dx] = STEPS[event.key];
    state.y = Math.max(0, Math.min(map.size[0] - 1, state.y + dy * map.step));
    state.x = Math.max(0, Math.min(map.size[1] - 1, state.x + dx * map.step));
    show();
  }

  function middle() {
    const {map} = current();
    [state.y, state.x] = map.size.map((side) => Math.floor(side / 2));
    show();
  }

  if (byId("pair") !== null) {  // it is absent where no arm has a detection to draw
    fill(byId("pair-image"), data.images.map((image) => image.name));
    byId("pair-image").addEventListener("change", showPair);
    showPair();
  }
  fill(byId("image"), data.images.map((image) => image.name));
  fill(byId("arm"), data.mapped);
  fill(byId("stage"), data.stages);
  byId("arm").value = Math.max(0, data.mapped.findIndex((arm) => arm !== data.baseline));
  byId("stage").value = data.stages.length - 1;
  for (const id of ["image", "arm", "stage"]) byId(id).addEventListener("change", middle);
  byId("explorer").addEventListener("pointermove", point);
  byId("explorer").addEventListener("pointerdown", point);
  byId("explorer").addEventListener("keydown", key);
  middle();
})();
