"use strict";
// One conversation per checkpoint; every question goes to all that are ticked, at once.

const RATE = 16000;
const SENT_AS_THEY_ARE = ["wav", "flac", "mp3", "ogg", "opus"];
const $ = (id) => document.getElementById(id);
const conversations = new Map(); // model -> messages
let clips = []; // waiting for their question: {data, format, url, name}
let recorder = null;
let limits = { max_duration_s: 120 };
let busy = false;

const mode = () => document.querySelector("input[name=mode]:checked").value;
const chosen = () => [...document.querySelectorAll("#models input:checked")].map((box) => box.value);
const say = (text) => { $("status").textContent = text; };

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function player(clip) {
  const audio = element("audio");
  audio.controls = true;
  audio.src = clip.url;
  return audio;
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}

// 16-bit mono WAV from samples in [-1, 1].
function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, x)) * 32767), true));
  return new Uint8Array(view.buffer);
}

// What browsers record (WebM, MP4) is decoded here: the server reads sound files only.
async function decoded(buffer) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const sound = await context.decodeAudioData(buffer);
  const length = Math.max(1, Math.round(sound.duration * RATE));
  const mixer = new OfflineAudioContext(1, length, RATE);
  const source = mixer.createBufferSource();
  source.buffer = sound;
  source.connect(mixer.destination);
  source.start();
  return wav((await mixer.startRendering()).getChannelData(0));
}

async function addClip(blob, name) {
  try {
    const kind = name.split(".").pop().toLowerCase();
    const buffer = await blob.arrayBuffer();
    if (!buffer.byteLength) throw new Error("the file is empty");
    const asItIs = SENT_AS_THEY_ARE.includes(kind);
    const bytes = asItIs ? new Uint8Array(buffer) : await decoded(buffer);
    const url = URL.createObjectURL(asItIs ? blob : new Blob([bytes], { type: "audio/wav" }));
    clips.push({ data: base64(bytes), format: asItIs ? kind : "wav", url, name });
    say("");
  } catch (error) {
    say(`${name} cannot be read as audio (${error.message || error.name}); use WAV, FLAC, MP3, Ogg or Opus`);
  }
  showClips();
}

function showClips() {
  $("clips").replaceChildren(...clips.map((clip, i) => {
    const line = element("span", "clip");
    const remove = element("button", "", "×");
    remove.type = "button";
    remove.title = `Remove ${clip.name}`;
    remove.onclick = () => { clips.splice(i, 1); showClips(); };
    line.append(element("span", "name", clip.name), player(clip), remove);
    return line;
  }));
}

async function record() {
  if (recorder) { recorder.stop(); return; }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    say(`no microphone (${error.name}): allow it in the browser, or upload a file`);
    return;
  }
  const pieces = [];
  recorder = new MediaRecorder(stream);
  const timer = setTimeout(() => recorder && recorder.stop(), limits.max_duration_s * 1000);
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = async () => {
    clearTimeout(timer);
    stream.getTracks().forEach((track) => track.stop());
    const blob = new Blob(pieces, { type: recorder.mimeType });
    recorder = null;
    $("record").textContent = "Record";
    $("record").classList.remove("on");
    const before = clips.length;
    await addClip(blob, "recording.webm");
    // In voice chat there is nothing to add: the question has been spoken.
    if (mode() === "voice" && clips.length > before) await send();
  };
  recorder.start();
  $("record").textContent = "Stop";
  $("record").classList.add("on");
  say("listening");
}

function column(model) {
  return document.querySelector(`.column[data-model="${CSS.escape(model)}"]`);
}

function bubble(model, role, text) {
  const made = element("div", `turn ${role}`, text);
  column(model).append(made);
  made.scrollIntoView({ block: "nearest" });
  return made;
}

async function answer(model, sent, words) {
  const turn = bubble(model, "user", words);
  sent.forEach((clip) => turn.append(player(clip)));
  const place = bubble(model, "assistant", "");
  const audio = sent.map(({ data, format }) => ({ type: "input_audio", input_audio: { data, format } }));
  const content = words ? [...audio, { type: "text", text: words }] : audio;
  const messages = [...(conversations.get(model) || []), { role: "user", content }];
  let text = "";
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model, messages, stream: true }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const events = (waiting + value).split("\n\n");
      waiting = events.pop();
      for (const event of events) {
        if (event === "data: [DONE]") continue;
        const found = JSON.parse(event.slice(6));
        if (found.error) throw new Error(found.error.message);
        text += found.choices[0]?.delta.content || "";
        place.textContent = text;
      }
    }
    place.textContent = text || "(empty answer)";
    conversations.set(model, [...messages, { role: "assistant", content: text }]);
  } catch (error) {
    // The turn is not part of the conversation: the next question starts from before it.
    place.textContent = error.message;
    place.classList.add("error");
  }
}

async function send() {
  const models = chosen();
  const words = mode() === "analysis" ? $("text").value.trim() : "";
  if (busy) return;
  if (!models.length) { say("tick a checkpoint first"); return; }
  if (!clips.length && !words) { say(mode() === "voice" ? "record or choose a clip first" : "give a clip or a question"); return; }
  const sent = clips;
  clips = [];
  showClips();
  $("text").value = "";
  busy = true;
  $("send").disabled = true;
  say("answering");
  await Promise.all(models.map((model) => answer(model, sent, words)));
  busy = false;
  $("send").disabled = false;
  say("");
}

function clear() {
  conversations.clear();
  document.querySelectorAll(".turn").forEach((turn) => turn.remove());
  clips = [];
  showClips();
  say("");
}

function showColumns() {
  document.querySelectorAll(".column").forEach((each) => { each.hidden = !chosen().includes(each.dataset.model); });
}

async function start() {
  const models = (await (await fetch("/v1/models")).json()).data.map((model) => model.id);
  models.forEach((model, i) => {
    const label = element("label");
    const box = element("input");
    box.type = "checkbox";
    box.value = model;
    box.checked = i < 2;
    box.onchange = showColumns;
    label.append(box, ` ${model}`);
    $("models").append(label);
    const made = element("section", "column");
    made.dataset.model = model;
    made.dataset.hint = "Record a question, or choose a clip.";
    made.append(element("h2", "", model));
    $("columns").append(made);
  });
  showColumns();
  limits = await (await fetch("/examples")).json();
  limits.examples.forEach((name) => $("examples").append(new Option(name)));
  $("examples").hidden = !limits.examples.length;
}

$("record").onclick = record;
$("upload").onchange = async (event) => {
  for (const file of event.target.files) await addClip(file, file.name);
  event.target.value = "";
};
$("examples").onchange = async (event) => {
  const name = event.target.value;
  event.target.value = "";
  if (name) await addClip(await (await fetch(`/examples/${encodeURIComponent(name)}`)).blob(), name);
};
document.querySelectorAll("input[name=mode]").forEach((each) => { each.onchange = () => { $("text").hidden = mode() === "voice"; }; });
$("ask").onsubmit = (event) => { event.preventDefault(); send(); };
$("clear").onclick = clear;
start().catch((error) => say(`the server does not answer: ${error.message}`));
