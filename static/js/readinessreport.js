// The parts of a readiness report, as elements. What a part is about comes with the report.

import { element, refill, table } from "./dom.js";
import { bytes, duration, integer, number, NOTHING, plain, words } from "./format.js";

export function showFindings(place, { findings, made_at }) {
  refill(place, made_at, () =>
    findings.length
      ? element(
          "ul",
          {},
          findings.map(({ code, severity, message, remedy }) =>
            element(
              "li",
              { class: `card finding-${severity}`, "data-code": code },
              element("p", {}, element("strong", {}, severity === "blocker" ? "Blocker: " : "Warning: "), message),
              element("p", { class: "hint" }, remedy),
            ),
          ),
        )
      : element("p", { class: "hint" }, "Nothing stands in the way, and there is nothing to know before."),
  );
}

/** What the service sees at this moment. */
export function showLive(place, live) {
  const devices = live.devices.map(({ slot, name, run_id, job_id, rest, memory_total_bytes: total, memory_used_bytes: used }) => {
    const free = total === null ? "" : `, ${bytes(total - used)} of ${bytes(total)} free`;
    const use = run_id !== null ? "at work on a run" : job_id !== null ? "at work on a job" : rest !== null ? `rested: ${rest.why}` : "idle";
    return [slot, `${name ?? ""}${free} ${use}`.replace(/^[, ]+/, "")];
  });
  const { wandb } = live;
  refill(place, live, () =>
    facts([
      ["disk free", bytes(live.disk_free_bytes)],
      ...devices,
      ["Weights & Biases", `${wandb.mode}; ${wandb.installed ? "" : "not "}installed, ${wandb.key ? "a" : "no"} key`],
      ["data folder", live.data_dir ? "given" : "none"],
    ]),
  );
}

export function showReport(place, report) {
  refill(place, report.made_at, () => [
    ...part("Time, memory, disk", projected(report)),
    ...part("Datasets", datasets(report.data)),
    ...part("Curriculum", curriculum(report.data)),
    ...part("Model and optimizer", model(report)),
    ...part("Machine", machine(report.machine)),
    ...part("Targets, and what to expect", targets(report.targets)),
    ...part("Risks", risks(report.risks)),
  ]);
}

function part(title, content) {
  return content === null ? [] : [element("h2", {}, title), content].flat();
}

function projected({ probe, projected: { time, disk }, absent }) {
  const onDisk = ["disk at most", disk.checkpoints > 0 ? bytes(disk.total_bytes) : NOTHING]; // none where there are no steps to make
  if (probe === null)
    return [
      facts([onDisk]),
      element("p", { class: "hint" }, `Time and memory were not measured: ${absent.probe ?? "a step failed"}.`),
      element("p", { class: "hint" }, `Disk: ${disk.basis}.`),
    ];
  return [
    facts([
      ["training", duration(time.total_s)],
      ["a step", `${number(probe.step_s)} s`],
      ["tokens a second", integer(probe.tokens_per_s)],
      ["memory at most", probe.peak_bytes === null ? NOTHING : bytes(probe.peak_bytes)],
      onDisk,
      ["epochs", epochs(time.epochs_s)],
    ]),
    element(
      "p",
      { class: "hint" },
      `Time: ${time.basis}. Validation, evaluation, checkpoints and compilation are not included.`,
    ),
    element("p", { class: "hint" }, `Disk: ${disk.basis}.`),
  ];
}

/** Equal ones that follow each other as one. */
function epochs(seconds) {
  const runs = [];
  for (const each of seconds.map(duration)) {
    const last = runs.at(-1);
    if (last?.[1] === each) last[0]++;
    else runs.push([1, each]);
  }
  return runs.map(([count, each]) => `${count} × ${each}`).join(", ");
}

function datasets({ source, folder, datasets: found, error }) {
  const problem = error === null ? null : element("p", { class: "bad" }, `${error}.`);
  if (!found.length) {
    const said = source === "generated" ? "Generated problems: no data folder is used." : null;
    return [problem, said && element("p", { class: "hint" }, said)].filter(Boolean);
  }
  const rows = [...found]
    .sort((one, other) => one.category.localeCompare(other.category))
    .map((each) => [
      each.name,
      element("span", { class: `data-${each.state.replace(" ", "-")}` }, each.state),
      each.category,
      each.stage,
      each.train,
      each.validation,
      each.test,
      each.samples,
      each.planned,
    ]);
  const labels = ["Dataset", "State", "Category", "From stage", "Train", "Validation", "Test", "Used", "Planned"];
  return [problem, wide("Datasets by category", labels, rows), element("p", { class: "hint" }, folder === null ? "From what was fetched." : `From ${folder}.`)].filter(
    Boolean,
  );
}

function curriculum(data) {
  if (!data.stages.length) return null;
  const rows = data.stages.map((each) => [
    `${each.stage} ${each.name}`,
    each.last_epoch === null ? `${each.first_epoch} and later` : `${each.first_epoch} to ${each.last_epoch}`,
    each.datasets.length,
    each.samples,
    each.held_out,
    each.duplicates,
    each.trained,
    each.batches,
    each.tokens,
    number(each.fill_ratio),
  ]);
  const labels = ["Stage", "Epochs", "Datasets", "Samples", "Held out", "Duplicates", "Trained", "Batches", "Tokens", "Fill"];
  const six = data.six_plan;
  const beside = six ? ` Six-dataset plan: ${plain(six.counted)} samples by stage; planned were ${plain(six.expected)}.` : "";
  const steps = `${integer(data.total_steps)} steps in ${data.epochs} ${data.epochs === 1 ? "epoch" : "epochs"}.${beside}`;
  return [wide("Stages", labels, rows), element("p", { class: "hint" }, steps)];
}

function model({ model: { parts, parameters, groups }, optimizer, metrics }) {
  const counted = [...Object.entries(parts), ["all", parameters]];
  const cadence = `${metrics.total} metrics: ${metrics.step} by step, ${metrics.epoch} by epoch, ${metrics.final} at the end.`;
  return [
    element(
      "div",
      { class: "beside" },
      wide("Parameters by part", ["Part", "Parameters"], counted),
      wide(
        "Parameters by how they are optimized",
        ["Optimizer group", "Tensors", "Parameters", "Learning rate"],
        groups.map((group) => [group.kind, group.tensors, group.parameters, number(group.learning_rate)]),
      ),
    ),
    facts(Object.entries(optimizer).map(([name, value]) => [words(name), number(value)])),
    element("p", { class: "hint" }, cadence),
  ];
}

function machine(found) {
  const { absent } = found;
  const shown = {
    python: found.python,
    torch: found.torch,
    gpu: found.gpu ?? (found.device === "cpu" ? "none: CPU" : null),
    compute_capability: found.compute_capability,
    memory_free_bytes: found.memory_free_bytes === null ? null : bytes(found.memory_free_bytes),
    memory_total_bytes: found.memory_total_bytes === null ? null : bytes(found.memory_total_bytes),
    precision: found.precision,
    threads: found.threads,
  };
  return facts(
    Object.entries(shown).map(([name, value]) => [
      words(name).replace(" bytes", ""),
      absent[name] ? `not known: ${absent[name]}` : plain(value),
    ]),
  );
}

function targets(rows) {
  if (!rows.length) return null;
  const cells = rows.map(({ dataset, figure, target, forecast }) => [dataset, figure, range(target), range(forecast)]);
  return wide("Targets and forecasts", ["Dataset", "Figure", "Hoped for", "To be expected"], cells);
}

function risks(found) {
  if (!found.length) return null;
  return element(
    "ul",
    { class: "risks" },
    found.map(({ risk, evidence, answer }) =>
      element("li", {}, element("strong", {}, `${risk}. `), answer, element("p", { class: "hint" }, `Evidence: ${evidence}.`)),
    ),
  );
}

function range(ends) {
  if (ends === null) return NOTHING;
  return ends[0] === ends[1] ? number(ends[0]) : ends.map(number).join("–");
}

function wide(caption, labels, rows) {
  return element("div", { class: "wide" }, table(caption, labels, rows));
}

function facts(pairs) {
  return element(
    "dl",
    { class: "facts-list" },
    pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}
