// Sound: files and recordings become clips {data: base64, format, name, seconds, peaks, url}.
import { button, el } from "./elements.js";

const RATE = 16000;
const SENT_AS_THEY_ARE = ["wav", "flac", "mp3", "ogg", "opus"];
const BARS = 120;

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

// Mono samples at RATE; decoding empties its buffer, so it gets a copy.
async function samplesOf(buffer) {
  const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(buffer.slice(0));
  const mixer = new OfflineAudioContext(1, Math.max(1, Math.round(sound.duration * RATE)), RATE);
  const source = mixer.createBufferSource();
  source.buffer = sound;
  source.connect(mixer.destination);
  source.start();
  return (await mixer.startRendering()).getChannelData(0);
}

function peaksOf(samples) {
  const width = Math.max(1, Math.ceil(samples.length / BARS));
  const peaks = Array.from({ length: Math.ceil(samples.length / width) }, (_, i) =>
    samples.subarray(i * width, (i + 1) * width).reduce((most, x) => Math.max(most, Math.abs(x)), 0));
  const most = Math.max(...peaks, 1e-3);
  return peaks.map((peak) => peak / most);
}

// The server reads sound files; what browsers record besides (WebM, MP4) becomes WAV here. Throws what is wrong.
export async function readClip(blob, name) {
  const kind = name.split(".").pop().toLowerCase();
  const buffer = await blob.arrayBuffer();
  if (!buffer.byteLength) throw new Error("the file is empty");
  const asItIs = SENT_AS_THEY_ARE.includes(kind);
  // A browser need not know all that the server reads: then there is no waveform.
  const samples = await samplesOf(buffer).catch((error) => { if (!asItIs) throw error; return null; });
  const bytes = asItIs ? new Uint8Array(buffer) : wav(samples);
  return {
    name, data: base64(bytes), format: asItIs ? kind : "wav",
    seconds: samples && samples.length / RATE, peaks: samples && peaksOf(samples),
    url: URL.createObjectURL(asItIs ? blob : new Blob([bytes], { type: "audio/wav" })),
  };
}

function waveform(peaks) {
  const drawn = (name, values) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(values).forEach(([key, value]) => made.setAttribute(key, value));
    return made;
  };
  const picture = drawn("svg", { viewBox: `0 0 ${peaks.length} 2`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const bars = peaks.map((peak, i) => `M${i + 0.2} ${1 - Math.max(peak, 0.03)}h.6v${2 * Math.max(peak, 0.03)}h-.6z`);
  picture.append(drawn("path", { d: bars.join(""), fill: "currentColor" }));
  return picture;
}

// A clip with its name, waveform and player; remove: called by its button, if given.
export function clipView(clip, remove) {
  const length = clip.seconds === null ? "" : `, ${clip.seconds.toFixed(1)} s`;
  return el("div", { class: "clip" },
    el("div", { class: "head" }, el("span", { class: "name" }, clip.name + length),
      remove && button("Remove", remove, `Remove ${clip.name}`)),
    clip.peaks && waveform(clip.peaks), el("audio", { controls: true, src: clip.url, "aria-label": clip.name }));
}

// Records until the returned function is called, or for most_s seconds; tell(seconds) while it does, then
// done(blob). Throws where there is no microphone.
export async function record(most_s, tell, done) {
  if (!navigator.mediaDevices) throw new Error("browsers give it to https and to this machine only");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const release = () => stream.getTracks().forEach((track) => track.stop());
  const pieces = [];
  let recorder;
  try {
    recorder = new MediaRecorder(stream);
    recorder.start();
  } catch (error) {
    // The microphone is on already.
    release();
    throw error;
  }
  const begun = performance.now();
  const timer = setInterval(() => {
    const seconds = (performance.now() - begun) / 1000;
    if (seconds >= most_s && recorder.state === "recording") recorder.stop(); else tell(seconds);
  }, 250);
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = () => {
    clearInterval(timer);
    release();
    done(new Blob(pieces, { type: recorder.mimeType }));
  };
  tell(0);
  return () => recorder.state === "recording" && recorder.stop();
}
