// The table of runs, and new values while the page is served. Needs curves.js.

const Table = (() => {
  let board, sort = {key: null, down: false}, words = [];

  function columns() {
    const step = (run) => run.steps.toLocaleString("en")
      + (run.planned && run.planned !== run.steps ? ` of ${run.planned.toLocaleString("en")}` : "");
    const plain = (key, title, text = number, hint = "") =>
      ({key, title, hint, get: (run) => run[key], text: (run) => run[key] == null ? "–" : text(run[key])});
    return [
      {key: "stage", title: "stage", get: (run) => run.order, text: (run) => run.stage},
      {key: "steps", title: "steps", get: (run) => run.steps, text: step},
      {key: "state", title: "state", get: (run) => run.finished ? Infinity : run.changed, text: (run) => run.finished
        ? "finished" : `last step ${duration(Math.max(1, (board.poll_s ? Date.now() / 1000 : board.now) - run.changed))} ago`},
      plain("loss", `loss, mean of last ${board.last_steps} steps`),
      ...Object.entries(board.scores).map(([key, title]) =>
        ({key, title: title.replace("held out: ", ""), hint: "the newest value", get: (run) => run.last[key],
          text: (run) => number(run.last[key])})),
      plain("tokens_per_s", "tokens/s", number, "median of the steps"),
      plain("audio_s_per_s", "× real time", number, "median of the steps"),
      plain("time", "time", duration, "sum of the steps"),
      plain("skipped", "skipped", number, "samples since the last start"),
    ];
  }

  const matching = () => board.runs.filter((run) =>
    words.every((word) => `${run.name} ${run.stage} ${run.about}`.toLowerCase().includes(word)));

  function ordered(shown) {
    const runs = matching(), column = shown.find(({key}) => key === sort.key);
    const get = column ? column.get : (run) => run.name;
    if (!column && sort.key === null) return runs;
    const sign = sort.down ? -1 : 1;
    // A run without the value stands last, whichever way.
    return runs.sort((a, b) => {
      const [x, y] = [get(a), get(b)];
      return x == null || y == null ? (x == null) - (y == null) : sign * (x < y ? -1 : x > y ? 1 : 0);
    });
  }

  function head(title, key, hint, kind) {
    const mine = sort.key === key, way = mine ? (sort.down ? "descending" : "ascending") : null;
    return el("th", {scope: "col", class: kind, "aria-sort": way}, el("button", {type: "button", title: hint || null,
      "data-sort": key, onclick: () => by(key, mine ? !sort.down : false)}, title, mine ? (sort.down ? " ↓" : " ↑") : ""));
  }

  function by(key, down) {
    sort = {key, down};
    show();
    document.querySelector(`[data-sort="${CSS.escape(key)}"]`)?.focus();
  }

  function row(run, shown) {
    const box = el("input", {type: "checkbox", "data-run": run.name, checked: Charts.shown(run.name),
      "aria-label": `show ${run.name}`, onchange: () => Curves.toggle([run.name], box.checked)});
    return el("tr", {}, el("th", {scope: "row"}, el("span", {class: "name"}, box, Charts.swatch(run.name), run.name),
      el("small", {}, run.about)),
      ...shown.map((column) => el("td", {class: "num", "data-label": column.title}, el("span",
        column.key === "state" && run.finished ? {class: "badge met"} : {}, column.text(run)))));
  }

  function show() {
    const shown = columns(), runs = ordered(shown);
    $("runs").replaceChildren(
      el("thead", {}, el("tr", {}, head("run", "name", "", ""),
        ...shown.map(({title, key, hint}) => head(title, key, hint, "num")))),
      el("tbody", {}, ...runs.map((run) => row(run, shown))));
    $("count").textContent = `${runs.length} of ${board.runs.length} runs`;
    const narrow = $("sort");
    narrow.replaceChildren(...[["name", "run"], ...shown.map(({key, title}) => [key, title])].flatMap(([key, title]) =>
      [["", "↑"], ["-", "↓"]].map(([sign, arrow]) => el("option", {value: sign + key}, `${title} ${arrow}`))));
    narrow.value = sort.key === null ? "name" : (sort.down ? "-" : "") + sort.key;
    const audio = board.runs.reduce((sum, run) => sum + run.audio_s, 0);
    const tiles = [[board.runs.length, "runs"],
      [board.runs.reduce((sum, run) => sum + run.trained, 0).toLocaleString("en"), "optimizer steps"],
      [audio < 3600 ? duration(audio) : `${number(audio / 3600)} h`, "of audio trained on"],
      [duration(board.runs.reduce((sum, run) => sum + (run.time ?? 0), 0)), "of training"]];
    $("tiles").replaceChildren(...tiles.map(([value, text]) => el("div", {class: "tile"}, el("b", {}, String(value)), text)));
    $("made").textContent = board.poll_s ? "from metrics.jsonl, renewed while this page is open" : `made ${board.made} from metrics.jsonl`;
  }

  function start(first) {
    board = first;
    $("search").addEventListener("input", (event) => {
      words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      show();
    });
    $("sort").addEventListener("change", (event) => {
      sort = {key: event.target.value.replace(/^-/, ""), down: event.target.value.startsWith("-")};
      show();
    });
    $("all").addEventListener("click", () => Curves.toggle(matching().map((run) => run.name), true));
    $("none").addEventListener("click", () => Curves.toggle(matching().map((run) => run.name), false));
    show();
  }

  return {start, set: (next) => {
    board = next;
    // Not while someone is at one of its controls.
    if (!$("runs").contains(document.activeElement) && document.activeElement !== $("sort")) show();
  }};
})();

// Of a run that has grown only the points behind the first ``kept`` come; these stay as they were.
function joined(run, before) {
  if (!run.kept) return run;
  for (const axis of Object.keys(run.x)) run.x[axis] = [...before.x[axis].slice(0, run.kept), ...run.x[axis]];
  for (const [key, {y, at}] of Object.entries(run.curves)) {
    const old = before.curves[key], places = old.at ?? old.y.map((_, i) => i);
    const stay = places.filter((place) => place < run.kept);
    run.curves[key] = {y: [...old.y.slice(0, stay.length), ...y], at: [...stay, ...at]};
  }
  return run;
}

async function renew(board) {
  const say = (text) => { $("live").textContent = text; };
  let {version, poll_s: wait, runs} = board;
  for (;;) {
    await new Promise((done) => setTimeout(done, wait * 1000));
    if (document.hidden) continue;
    try {
      const answer = await fetch(`data.json?since=${version}`);
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      say("");
      if (answer.status === 204) continue;
      const next = await answer.json();
      next.runs = next.runs.map((run) => joined(run, runs.find(({name}) => name === run.name)));
      ({version, poll_s: wait, runs} = next);
      Curves.set(next);
      Table.set(next);
    } catch (error) {
      say(`No new values: ${error.message}. Is qa-train dashboard still running?`);
    }
  }
}

const board = JSON.parse($("board").textContent);
Curves.start($("curves"), board);
Table.start(board);
if (board.poll_s) renew(board);
