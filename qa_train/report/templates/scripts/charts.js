// Charts of runs on uPlot: what is drawn, in which colour, and what stands under the cursor. Needs elements.js.

const Charts = (() => {
  // Distances of the marks of an axis that counts.
  const WHOLE = Array.from({length: 15}, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
  const AXES = {step: "optimizer steps", tokens: "tokens", audio: "audio heard", time: "training time"};
  const WINDOWS = [1, 3, 5, 10, 20, 50, 100, 200, 500, 1000];
  const HUES = 8, DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
  const state = {x: "step", log: false, window: 20, clip: true, off: new Set(), zoom: new Map()};
  const hues = new Map(), charts = new Map();
  let board;
  const seen = new IntersectionObserver(
    (entries) => entries.forEach((entry) => {
      const chart = charts.get(entry.target);
      chart.visible = entry.isIntersecting;
      if (chart.visible) draw(chart);
    }), {rootMargin: "200px"});
  const sized = new ResizeObserver((entries) => entries.forEach((entry) => {
    const chart = charts.get(entry.target);
    if (chart?.plot && entry.contentRect.width) chart.plot.setSize(size(chart.host));
  }));

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const size = (host) => ({width: host.clientWidth, height: host.clientWidth < 420 ? 210 : 250});
  const hue = (name) => hues.get(name) % HUES;
  const dash = (name) => Math.floor(hues.get(name) / HUES) % DASHES.length;
  const swatch = (name) => el("span", {class: "swatch", style: `--c: var(--h${hue(name)})`, "data-dash": dash(name)});
  const shown = (name) => !state.off.has(name);

  // The mean of steps before a point, which weighs near ones more; the first points are not pulled down.
  function smooth(ys, points) {
    const weight = 1 - 1 / Math.max(1, points);
    let total = 0, norm = 0;
    return ys.map((y) => {
      total = weight * total + (1 - weight) * y;
      norm = weight * norm + (1 - weight);
      return total / norm;
    });
  }

  // The unit of an axis: seconds and hours are told as what suits the longest run.
  function unit(axis) {
    const most = Math.max(0, ...board.runs.map((run) => run.x[axis]?.at(-1) ?? 0));
    if (axis === "audio") return most > 7200 ? [3600, "hours of audio"] : [60, "minutes of audio"];
    if (axis === "time") return most > 7200 ? [3600, "hours of training steps"] : [60, "minutes of training steps"];
    return [1, AXES[axis]];
  }

  function points(run, key, divisor) {
    const curve = run.curves[key], axis = run.x[state.x];
    if (!curve || !axis) return null;
    const xs = [], ys = [];
    curve.y.forEach((y, i) => {
      const x = axis[curve.at ? curve.at[i] : i] / divisor;
      if (state.log && y <= 0) return;
      // uPlot wants every x once: of two the later.
      if (xs.length && x <= xs.at(-1)) ys[ys.length - 1] = y;
      else { xs.push(x); ys.push(y); }
    });
    return xs.length ? [xs, ys] : null;
  }

  function lines(chart) {
    const [divisor] = unit(state.x), found = [];
    for (const run of board.runs) {
      if (run.stage !== chart.stage || !shown(run.name)) continue;
      const table = points(run, chart.panel.key, divisor);
      if (!table) continue;
      const average = !chart.panel.steady && state.window > run.per_point && table[0].length > 2;
      if (average) found.push({run, table, faint: true});
      const ys = average ? smooth(table[1], state.window / run.per_point) : table[1];
      found.push({run, table: [table[0], ys], faint: false});
    }
    return found;
  }

  // Rare peaks would flatten the rest: they leave the frame at the top.
  function limits(plot, low, high) {
    if (low == null || !Number.isFinite(low)) return state.log ? [1, 10] : [0, 1];
    const [first, last] = plot.series[0].idxs ?? [0, plot.data[0].length - 1];
    if (state.clip) {
      const values = plot.series.flatMap((line, i) =>
        i && line.auto !== false && line.show ? Array.from(plot.data[i].slice(first, last + 1)) : [])
        .filter((value) => value != null).sort((a, b) => a - b);
      const most = values[Math.floor(0.98 * (values.length - 1))];
      const least = values[0];
      if (values.length > 50 && high - least > 2 * (most - least) && most > least) high = most;
    }
    if (state.log) {
      // Outwards to the next value of one digit, where a line of the grid is.
      const power = (value) => 10 ** Math.floor(Math.log10(value));
      const ends = [Math.floor(low / power(low)) * power(low), Math.ceil(high / power(high)) * power(high)];
      return ends[0] < ends[1] ? ends : [ends[0] / 2, ends[1] * 2];
    }
    // Equal values differ by rounding once they are averaged: that is not a range to show.
    const pad = high - low > 1e-9 * Math.abs(high) ? 0.06 * (high - low) : Math.abs(high) * 0.1 || 1;
    return [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
  }

  function options(chart, found) {
    const soft = css("--soft"), rule = css("--rule"), zoom = () => state.zoom.get(chart.stage);
    const axis = {stroke: soft, grid: {stroke: rule, width: 1}, ticks: {stroke: rule, width: 1},
      font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", labelSize: 18, size: 30};
    return {
      ...size(chart.host),
      legend: {show: false},
      cursor: {
        sync: {key: chart.stage, filters: {pub: (type) => type === "mousemove" || type === "mouseleave"}},
        drag: {x: true, y: false, setScale: false}, focus: {prox: 24}, points: {size: 7},
        // Runs have their points at different places: of each line the nearest is told.
        hover: {skip: [undefined, null]},
        bind: {dblclick: () => () => reset(chart.stage)},
      },
      focus: {alpha: 0.35},
      scales: {
        x: {time: false, range: (plot, low, high) => zoom() ?? (low === high ? [low - 1, high + 1] : [low, high])},
        y: {distr: state.log ? 3 : 1, range: limits},
      },
      axes: [
        {...axis, label: unit(state.x)[1], ...(["step", "tokens"].includes(state.x) && {incrs: WHOLE}), values: (plot, at) => at.map(number)},
        {...axis, size: 58, values: (plot, at) => at.map((value) => value == null ? "" : number(value))},
      ],
      series: [{}, ...found.map(({run, faint}) => ({
        label: run.name, stroke: css(`--h${hue(run.name)}`), dash: DASHES[dash(run.name)], spanGaps: true,
        width: faint ? 1 : 2, alpha: faint ? 0.28 : 1, auto: !faint, points: faint ? {show: false} : {size: 5},
      }))],
      hooks: {
        setSelect: [(plot) => {
          if (plot.select.width < 4) return;
          const at = (left) => plot.posToVal(left, "x");
          state.zoom.set(chart.stage, [at(plot.select.left), at(plot.select.left + plot.select.width)]);
          plot.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
          rescale(chart.stage);
        }],
        setCursor: [(plot) => tell(chart, plot)],
      },
    };
  }

  function tell(chart, plot) {
    const {left, idx} = plot.cursor;
    chart.tip.hidden = left == null || left < 0 || idx == null
      || !(chart.host.matches(":hover") || document.activeElement === chart.host);
    if (chart.tip.hidden) return;
    const rows = [];
    plot.series.forEach((line, i) => {
      if (!i || chart.lines[i - 1].faint) return;
      const at = plot.cursor.idxs[i], value = plot.data[i][at];
      if (value != null) rows.push([chart.lines[i - 1].run.name, value, plot.data[0][at]]);
    });
    rows.sort((a, b) => b[1] - a[1]);
    const where = plot.data[0][idx];
    chart.tip.replaceChildren(
      el("b", {}, `${number(where)} ${unit(state.x)[1]}`),
      ...rows.map(([name, value, x]) => el("div", {}, swatch(name), el("span", {}, name),
        el("b", {}, number(value) + (Math.abs(x - where) > 0.02 * where ? ` at ${number(x)}` : "")))));
    const right = left > plot.over.clientWidth / 2;
    chart.tip.style.left = right ? "" : `${plot.over.offsetLeft + left + 12}px`;
    chart.tip.style.right = right ? `${chart.host.clientWidth - plot.over.offsetLeft - left + 12}px` : "";
  }

  function draw(chart) {
    if (!chart.visible || !chart.stale) return;
    chart.stale = false;
    const found = lines(chart);
    const data = found.length ? uPlot.join(found.map((line) => line.table)) : [[]];
    // Only values are new: the plot stays, with its cursor.
    const kind = JSON.stringify([found.map(({run, faint}) => [run.name, faint]), state.x, state.log, css("--soft")]);
    chart.lines = found;
    if (chart.plot && chart.kind === kind) return void chart.plot.setData(data);
    chart.plot?.destroy();
    chart.plot = null;
    chart.kind = kind;
    chart.host.classList.toggle("empty", !found.length);
    if (found.length) chart.plot = new uPlot(options(chart, found), data, chart.host);
    chart.host.append(chart.tip);
  }

  function refresh() {
    for (const chart of charts.values()) { chart.stale = true; draw(chart); }
  }

  function rescale(stage) {
    for (const {plot, stage: of} of charts.values()) if (plot && of === stage) plot.setData(plot.data);
  }

  function reset(stage) {
    for (const each of stage == null ? [...state.zoom.keys()] : [stage]) {
      state.zoom.delete(each);
      rescale(each);
    }
  }

  // Left and right move the cursor, + and - zoom around it, Escape shows all.
  function keys(chart, event) {
    const {plot} = chart, xs = plot?.data[0];
    if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const idx = Math.min(plot.cursor.idx ?? 0, xs.length - 1), move = event.shiftKey ? 10 : 1;
    const step = {ArrowLeft: -move, ArrowRight: move}[event.key], factor = {"+": 0.5, "=": 0.5, "-": 2}[event.key];
    if (step) {
      const to = Math.max(0, Math.min(xs.length - 1, idx + step));
      plot.setCursor({left: plot.valToPos(xs[to], "x"), top: plot.over.clientHeight / 2});
    } else if (factor) {
      const {min, max} = plot.scales.x, middle = Math.min(max, Math.max(min, xs[idx]));
      const low = Math.max(xs[0], middle - (middle - min) * factor);
      const high = Math.min(xs.at(-1), middle + (max - middle) * factor);
      if (low < high) state.zoom.set(chart.stage, [low, high]);
      rescale(chart.stage);
    } else if (event.key === "Escape") reset(chart.stage);
    else return;
    event.preventDefault();
  }

  // An empty chart of a panel, drawn when it is first seen.
  function add(stage, panel, label) {
    const host = el("div", {class: "chart", tabindex: "0", role: "group",
      "aria-label": `${label}. Arrow keys read values, plus and minus zoom, Escape shows all.`});
    const tip = el("div", {class: "tip", hidden: true, "aria-live": "polite"});
    const chart = {host, tip, panel, stage, visible: false, stale: true, plot: null, lines: []};
    host.addEventListener("keydown", (event) => keys(chart, event));
    for (const leave of ["mouseleave", "blur"]) host.addEventListener(leave, () => { tip.hidden = true; });
    charts.set(host, chart);
    seen.observe(host);
    sized.observe(host);
    return host;
  }

  function clear() {
    for (const chart of charts.values()) chart.plot?.destroy();
    charts.clear();
    seen.disconnect();
    sized.disconnect();
  }

  // New values; returns the runs that were not there before, which have got their colours.
  function take(next) {
    board = next;
    const fresh = board.runs.filter((run) => !hues.has(run.name));
    for (const run of fresh) hues.set(run.name, hues.size);
    return fresh;
  }

  return {AXES, WINDOWS, state, charts, add, clear, take, refresh, reset, shown, swatch};
})();
