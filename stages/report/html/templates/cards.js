// The cards of the browsing views. All text is set as text, never as HTML: names may hold any character.
const data = JSON.parse(document.getElementById("browse-data").textContent);

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function percent(value) {
  return value === null ? "undefined" : `${value.toFixed(1)} %`;
}

function mean(values) {
  const numbers = values.filter((value) => value !== null && value !== undefined);
  return numbers.length ? numbers.reduce((sum, value) => sum + value, 0) / numbers.length : null;
}

// A picture that enlarges, over its caption. `image` is the entry of a gallery; `source` another picture of its size.
function picture(image, alt, caption, source = image.source, className = "") {
  const node = element("img", { src: source, alt, className: `pixels ${className}`, decoding: "async" });
  node.setAttribute("width", image.width);
  node.setAttribute("height", image.height);
  const figcaption = element("figcaption", {}, ...caption);
  return element("figure", {}, enlargeButton(node, alt), figcaption);
}

function card(title, ...children) {
  return element("article", { className: "card" }, element("h4", {}, title), ...children);
}

function legend(classes) {
  const entries = classes.map((index) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.setProperty("--color", data.colors[index]);
    return element("li", {}, swatch, data.classes[index]);
  });
  return element("ul", { className: "legend" }, ...entries);
}

function segmentationCard(view, index, { classIndex }) {
  const image = data.scenes[view.images[index]];
  const figures = [
    picture(image, `Image ${image.id}`, ["Image"]),
    picture(image, `True mask of ${image.id}`, ["True mask"], view.truths[index], "mask"),
  ];
  const present = new Set(image.classes.filter((value) => value < data.classes.length));
  view.runs.forEach((label, run) => {
    const mask = view.predictions[run][index];
    const iou = classIndex === null ? mask.iou : (mask.class_iou[classIndex] ?? null);
    const name = classIndex === null ? "IoU" : `IoU of ${data.classes[classIndex]}`;
    const detail = Object.entries(mask.class_iou).map(([value, number]) => `${data.classes[value]} ${number.toFixed(1)}`);
    const alt = `Mask of ${image.id} by ${label}: ${name} ${percent(iou)} (by class: ${detail.join(", ")})`;
    const score = element("span", { className: "score" }, `${name} ${percent(iou)}`);
    figures.push(picture(image, alt, [label, score], mask.source, "mask"));
    Object.keys(mask.class_iou).forEach((value) => present.add(Number(value)));
  });
  const classes = [...present].sort((a, b) => a - b);
  return card(image.id, legend(classes), element("div", { className: "pictures" }, ...figures));
}

function captioningCard(view, index, { run: chosen }) {
  const image = data.scenes[view.images[index]];
  const rows = view.runs.map((label, run) => {
    const { texts, scores } = view.captions[run];
    return element(
      "tr",
      { className: run === chosen ? "chosen" : "" },
      element("th", { scope: "row" }, label),
      element("td", {}, texts[index]),
      element("td", { className: "number" }, scores[index].toFixed(1)),
    );
  });
  const header = element(
    "tr",
    {},
    element("th", { scope: "col" }, "Cell"),
    element("th", { scope: "col" }, "Caption"),
    element("th", { scope: "col", className: "number" }, "BLEU+1"),
  );
  const table = element("table", {}, element("thead", {}, header), element("tbody", {}, ...rows));
  table.setAttribute("aria-label", `Captions of ${image.id}`);
  const reference = element("p", { className: "reference" }, element("b", {}, "Reference: "), view.references[index]);
  return card(
    image.id,
    element("div", { className: "beside" }, picture(image, `Image ${image.id}`, []), element("div", {}, reference, table)),
  );
}

function retrievalCard(view, index, { run }) {
  const own = view.images[index];
  const image = data.scenes[own];
  const ranks = view.ranks[run];
  const nearest = ranks.nearest[index].map((other, position) => {
    const found = data.scenes[other];
    const isOwn = other === own;
    const text = isOwn ? [element("b", {}, `${position + 1} ✓ own image`)] : [`${position + 1}`];
    const alt = `Nearest image ${position + 1}: ${found.id}${isOwn ? ", the caption's own" : ""}`;
    return element("li", { className: isOwn ? "own" : "" }, picture(found, alt, text));
  });
  const rankText = [
    "Own image",
    element("span", { className: "score" }, `Text to image: rank ${ranks.text_to_image[index]}`),
    element("span", { className: "score" }, `Image to text: rank ${ranks.image_to_text[index]}`),
  ];
  const list = element("ol", { className: "pictures" }, ...nearest);
  list.setAttribute("aria-label", "Nearest images");
  return card(
    image.id,
    element("p", { className: "reference" }, element("b", {}, "Caption: "), view.captions[index]),
    element("div", { className: "beside" }, picture(image, `Image ${image.id}`, rankText), list),
  );
}

function classificationCard(view, index, { run }) {
  const image = data.labeled[view.images[index]];
  const { labels, probabilities, true_probabilities: trueProbabilities } = view.predictions[run];
  const isRight = labels[index] === view.labels[index];
  const truth = data.labels[view.labels[index]];
  const predicted = data.labels[labels[index]];
  const pair = (name, value, probability) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, `${value} `, element("span", { className: "score" }, percent(probability))));
  const labelList = element(
    "dl",
    {},
    pair("True label", truth, trueProbabilities[index]),
    pair("Predicted", predicted, probabilities[index]),
  );
  const verdict = element("p", { className: isRight ? "right" : "wrong" }, isRight ? "✓ right" : "✗ wrong");
  const alt = `Image ${image.id}: ${truth}, predicted ${predicted}`;
  return card(image.id, picture(image, alt, []), verdict, labelList);
}
