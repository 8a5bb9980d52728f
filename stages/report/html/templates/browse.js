// The browsing views: filter, order and page through images.

// What each view shows. `score` is higher for a better result, null where it is undefined; `run` is null for all runs.
const VIEWS = {
  segmentation: {
    pageSize: 6,
    names: data.classes,
    classes: (view, index) => data.scenes[view.images[index]].classes,
    runLabel: "Score of",
    allRuns: "All heads (mean)",
    score: (view, index, { run, classIndex }) => {
      const masks = run === null ? view.predictions.map((masks) => masks[index]) : [view.predictions[run][index]];
      return mean(masks.map((mask) => (classIndex === null ? mask.iou : mask.class_iou[classIndex])));
    },
    card: segmentationCard,
  },
  captioning: {
    pageSize: 4,
    names: data.classes,
    classes: (view, index) => data.scenes[view.images[index]].classes,
    runLabel: "Score of",
    allRuns: "All cells (mean)",
    score: (view, index, { run }) => {
      const runs = run === null ? view.captions : [view.captions[run]];
      return mean(runs.map((captions) => captions.scores[index]));
    },
    card: captioningCard,
  },
  retrieval: {
    pageSize: 5,
    names: data.classes,
    classes: (view, index) => data.scenes[view.images[index]].classes,
    runLabel: "Row",
    score: (view, index, { run }) => -view.ranks[run].text_to_image[index],
    card: retrievalCard,
  },
  classification: {
    pageSize: 18,
    names: data.labels,
    classes: (view, index) => [view.labels[index]],
    runLabel: "Setting",
    score: (view, index, { run }) => view.predictions[run].true_probabilities[index],
    isMistake: (view, index, { run }) => view.predictions[run].labels[index] !== view.labels[index],
    card: classificationCard,
  },
};

const ORDERS = { data: "As in the data", worst: "Worst first", best: "Best first" };

// The indices of a view's images that pass the filters, in order.
function selectIndices(view, kind, state) {
  const indices = view.images.map((_, index) => index).filter((index) => {
    if (state.classIndex !== null && !kind.classes(view, index).includes(state.classIndex)) return false;
    return !state.mistakes || kind.isMistake(view, index, state);
  });
  if (state.order === "data") return indices;
  const scores = new Map(indices.map((index) => [index, kind.score(view, index, state)]));
  const sign = state.order === "worst" ? 1 : -1;
  return indices.sort((first, second) => {
    const [a, b] = [scores.get(first), scores.get(second)];
    if (a === null || b === null) return (a === null) - (b === null); // undefined scores are last
    return sign * (a - b);
  });
}

let controls = 0; // for IDs

function labeled(text, control) {
  controls += 1;
  control.id = `control-${controls}`;
  return element("div", { className: "field" }, element("label", { htmlFor: control.id }, text), control);
}

function dropdown(options, value, onChange) {
  const node = element("select", {}, ...options.map(([key, text]) => element("option", { value: key }, text)));
  node.value = value;
  node.addEventListener("change", () => onChange(node.value));
  return node;
}

// The classes that occur in a view's images, with the number of images, as options of a dropdown.
function classOptions(view, kind) {
  const counts = new Map();
  view.images.forEach((_, index) => {
    for (const value of kind.classes(view, index)) counts.set(value, (counts.get(value) ?? 0) + 1);
  });
  const present = [...counts.keys()].filter((value) => value < kind.names.length).sort((a, b) => a - b);
  const options = present.map((value) => [String(value), `${kind.names[value]} (${counts.get(value)})`]);
  return [["", `All classes (${view.images.length})`], ...options];
}

function runOptions(view, kind) {
  const options = view.runs.map((label, run) => [String(run), label]);
  return kind.allRuns ? [["", kind.allRuns], ...options] : options;
}

// Buttons for the previous and next page, and a field for its number.
function buildPager(state, update) {
  const previous = element("button", { type: "button" }, "Previous");
  const next = element("button", { type: "button" }, "Next");
  const number = element("input", { type: "number", min: 1, value: 1 });
  const total = element("span", {});
  const go = (page) => {
    state.page = page;
    update();
  };
  previous.addEventListener("click", () => go(state.page - 1));
  next.addEventListener("click", () => go(state.page + 1));
  number.addEventListener("change", () => go(Number(number.value) - 1));
  const node = element("div", { className: "pager" }, previous, labeled("Page", number), total, next);
  const show = (pages) => {
    number.value = state.page + 1;
    number.max = pages;
    total.textContent = `of ${pages}`;
    // Not `disabled`: that would take the focus from a button that has just been pressed.
    previous.setAttribute("aria-disabled", state.page === 0);
    next.setAttribute("aria-disabled", state.page === pages - 1);
  };
  return { node, show };
}

function setUpBrowser(container) {
  const name = container.dataset.view;
  const view = data.views[name];
  const kind = VIEWS[name];
  const state = { classIndex: null, run: kind.allRuns ? null : 0, order: "data", mistakes: Boolean(kind.isMistake), page: 0 };
  const toolbar = element("div", { className: "toolbar" });
  const status = element("p", { className: "status", role: "status" });
  const cards = element("div", { className: `cards ${name}` });
  const pagers = [buildPager(state, update), buildPager(state, updateFromBelow)];

  function update() {
    const indices = selectIndices(view, kind, state);
    const pages = Math.max(1, Math.ceil(indices.length / kind.pageSize));
    state.page = Math.min(Math.max(Math.trunc(state.page) || 0, 0), pages - 1);
    const first = state.page * kind.pageSize;
    const visible = indices.slice(first, first + kind.pageSize);
    cards.replaceChildren(...visible.map((index) => kind.card(view, index, state)));
    const range = visible.length ? `Images ${first + 1} to ${first + visible.length} of ${indices.length}` : "No image";
    status.textContent = indices.length < view.images.length ? `${range} (${view.images.length} without filters)` : range;
    for (const pager of pagers) pager.show(pages);
  }

  function updateFromBelow() {
    update();
    container.scrollIntoView();
  }

  function change(key, value) {
    state[key] = value;
    state.page = 0;
    update();
  }

  const asIndex = (value) => (value === "" ? null : Number(value));
  const classes = classOptions(view, kind);
  if (classes.length > 1) {
    toolbar.append(labeled("Class", dropdown(classes, "", (value) => change("classIndex", asIndex(value)))));
  }
  const runs = runOptions(view, kind);
  toolbar.append(labeled(kind.runLabel, dropdown(runs, runs[0][0], (value) => change("run", asIndex(value)))));
  toolbar.append(labeled("Order", dropdown(Object.entries(ORDERS), state.order, (value) => change("order", value))));
  if (kind.isMistake) {
    const box = element("input", { type: "checkbox", checked: state.mistakes });
    box.addEventListener("change", () => change("mistakes", box.checked));
    const field = labeled("Mistakes only", box);
    field.classList.add("check");
    toolbar.append(field);
  }
  container.append(toolbar, element("div", { className: "bar-above" }, status, pagers[0].node), cards, pagers[1].node);
  update();
}

document.getElementById("needs-script").remove();
for (const container of document.querySelectorAll(".browser")) setUpBrowser(container);
