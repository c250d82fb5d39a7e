// One answer of the server, as it comes.

// Errors of the model's API are JSON; those of what stands before it (the guard of hosts, a proxy) are text.
async function reasonOf(response) {
  const said = await response.text();
  try { return JSON.parse(said).error.message; } catch { return said.trim() || `the server answered ${response.status}`; }
}

// Asks and calls more(text so far) with every piece. Returns {text, finish, tokens}; throws what the server says
// is wrong, and AbortError when the signal ends it (the server then stops too).
export async function answerOf(request, signal, more) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST", signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw new Error(await reasonOf(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const answer = { text: "", finish: null, tokens: null };
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return answer;
      const found = JSON.parse(event.slice(6));
      if (found.error) throw new Error(found.error.message);
      const piece = found.choices[0]?.delta.content || "";
      answer.finish = found.choices[0]?.finish_reason || answer.finish;
      answer.tokens = found.usage?.completion_tokens ?? answer.tokens;
      answer.text += piece;
      if (piece) more(answer.text);
    }
  }
}
