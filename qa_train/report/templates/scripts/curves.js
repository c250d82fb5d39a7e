// The curves of a page: what the reader chooses, and a part for every stage. Needs charts.js.

const Curves = (() => {
  const {AXES, WINDOWS, state, refresh, reset, shown, swatch} = Charts;
  // Runs of a stage that are on at first: more lines are hard to tell apart.
  const AT_FIRST = 8;
  let board, stages, built = "", wanted = "";

  function figure(stage, panel) {
    return el("figure", {"data-title": panel.title.toLowerCase()}, el("figcaption", {}, panel.title),
      Charts.add(stage.name, panel, `${panel.title}, ${stage.title}`));
  }

  function chip(run) {
    const box = el("input", {type: "checkbox", "data-run": run.name, checked: shown(run.name),
      onchange: () => toggle([run.name], box.checked)});
    return el("label", {class: "chip"}, box, swatch(run.name), run.name);
  }

  function toggle(names, on) {
    for (const name of names) on ? state.off.delete(name) : state.off.add(name);
    for (const box of document.querySelectorAll("input[data-run]")) box.checked = shown(box.dataset.run);
    refresh();
  }

  function section(stage) {
    const runs = board.runs.filter((run) => run.stage === stage.name);
    const averaged = Math.max(1, ...runs.map((run) => run.per_point));
    const body = stage.groups.map((group, i) => el("details", {open: i === 0, "data-group": ""},
      el("summary", {}, group.title, el("small", {}, ` ${group.panels.length}`)),
      el("div", {class: "charts"}, ...group.panels.map((panel) => figure(stage, panel)))));
    return el("section", {"data-stage": stage.name}, el("h2", {}, stage.title),
      el("fieldset", {class: "chips"}, el("legend", {}, "runs shown"), ...runs.map(chip)),
      averaged > 1 ? el("p", {class: "note"}, `A point of a long run is the mean of up to ${averaged} steps.`) : null,
      ...(body.length ? body : [el("p", {class: "note"}, "No curve has two steps yet.")]), differing(stage, runs));
  }

  function differing(stage, runs) {
    if (runs.length < 2) return null;
    const rows = Object.entries(stage.differences);
    if (!rows.length) return el("p", {class: "note"}, "The settings of these runs are the same.");
    return el("details", {}, el("summary", {}, "settings that differ", el("small", {}, ` ${rows.length}`)),
      el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": `settings, ${stage.title}`},
        el("table", {class: "settings"},
          el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "setting"),
            ...runs.map((run) => el("th", {scope: "col"}, swatch(run.name), run.name)))),
          el("tbody", {}, ...rows.map(([key, values]) => el("tr", {}, el("th", {scope: "row"}, key),
            ...values.map((value) => el("td", {}, value))))))));
  }

  function filter() {
    const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
    for (const figure of document.querySelectorAll("figure[data-title]"))
      figure.hidden = !words.every((word) => figure.dataset.title.includes(word));
    for (const group of document.querySelectorAll("details[data-group]")) {
      const some = group.querySelector("figure:not([hidden])");
      group.hidden = !some;
      if (words.length && some) group.open = true;
    }
  }

  function tick(key, label) {
    const box = el("input", {type: "checkbox", id: key, checked: state[key], onchange: () => {
      state[key] = box.checked;
      refresh();
    }});
    return el("label", {}, box, label);
  }

  function toolbar() {
    const said = el("output", {});
    const say = () => { said.textContent = state.window > 1 ? `${state.window} steps` : "off"; };
    say();
    return el("form", {class: "toolbar", "aria-label": "how curves are drawn", onsubmit: (event) => event.preventDefault()},
      el("label", {}, "x axis ", el("select", {id: "axis", onchange: (event) => {
        state.x = event.target.value;
        state.zoom.clear();
        refresh();
      }})),
      el("label", {}, "smoothing ", el("input", {type: "range", id: "smoothing", min: 0, max: WINDOWS.length - 1,
        value: WINDOWS.indexOf(state.window), oninput: (event) => {
          state.window = WINDOWS[event.target.value];
          say();
          refresh();
        }}), said),
      tick("log", "log y axis"), tick("clip", "clip outliers"),
      el("label", {}, "find charts ", el("input", {type: "search", id: "find", oninput: (event) => {
        wanted = event.target.value;
        filter();
      }})),
      el("button", {type: "button", id: "unzoom", onclick: () => reset()}, "reset zoom"));
  }

  // The first run, and a metric that is logged later, bring axes.
  function offerAxes() {
    const menu = $("axis"), axes = Object.keys(AXES).filter((axis) => board.runs.some((run) => run.x[axis]));
    if (axes.join() === [...menu.options].map((option) => option.value).join()) return;
    if (!axes.includes(state.x)) state.x = "step";
    menu.replaceChildren(...axes.map((axis) => el("option", {value: axis, selected: axis === state.x}, AXES[axis])));
  }

  function set(next) {
    board = next;
    offerAxes();
    const fresh = Charts.take(next);
    for (const stage of board.stages) {
      const newest = fresh.filter((run) => run.stage === stage.name).sort((a, b) => (b.changed ?? 0) - (a.changed ?? 0));
      for (const run of newest.slice(AT_FIRST)) state.off.add(run.name);
    }
    const kind = JSON.stringify(board.stages.map((stage) => [stage, board.runs.map((run) => [run.name, run.stage])]));
    if (kind !== built) {
      built = kind;
      const folds = () => [...stages.querySelectorAll("details")].map((group) =>
        [group.closest("section").dataset.stage + group.querySelector("summary").firstChild.textContent, group]);
      const open = new Map(folds().map(([name, group]) => [name, group.open]));
      Charts.clear();
      stages.replaceChildren(...board.stages.map(section));
      for (const [name, group] of folds()) group.open = open.get(name) ?? group.open;
      filter();
    }
    refresh();
  }

  function start(host, first) {
    // At first an average over about a thirtieth of a run: steady, and hardly behind.
    const steps = first.runs.map((run) => run.x.step.at(-1) ?? 1).sort((a, b) => a - b);
    state.window = WINDOWS.findLast((window) => window <= Math.max(1, (steps[Math.floor(steps.length / 2)] ?? 1) / 30));
    board = first;
    stages = el("div");
    host.replaceChildren(toolbar(), stages);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
    set(first);
  }

  return {start, set, toggle};
})();
