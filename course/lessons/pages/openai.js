// A conversation with an OpenAI endpoint: the pages of stages 3 and 4.
"use strict";
let turns = [];
let leaving = null; // of the answer in progress
let model = null;

async function send(message) {
  if (leaving || !message.trim()) return;
  leaving = new AbortController();
  update();
  showMine(message);
  const bubble = make("div", { className: "bubble" }, dots());
  const figures = make("span", { className: "below" });
  const answer = item("", "waiting", bubble, figures);
  show(answer);
  await setPace(true);
  const outcome = await ask([...turns, { role: "user", content: message }], (text, ttft) => {
    const stay = atEnd();
    if (!figures.textContent) bubble.textContent = "";
    bubble.append(text);
    put(figures, "firstAfter", { ttft });
    if (stay) toEnd();
  });
  await setPace(false);
  leaving = null;
  if (outcome.error) fail(answer, bubble, figures, message, outcome);
  else {
    turns.push({ role: "user", content: message }, { role: "assistant", content: outcome.text });
    put(answer.firstChild, "model");
    if (!outcome.text.trim()) {
      answer.className = "empty";
      put(bubble, "nothing");
    }
    put(figures, outcome.figures, outcome);
  }
  update();
  toEnd();
}

// requests an answer, and passes on each text and how long the first one took; never throws
async function ask(messages, each) {
  const began = performance.now();
  const outcome = { text: "", ttft: "–", pieces: 0 };
  let logid = null;
  try {
    model ??= (await (await fetch("v1/models")).json()).data[0].id;
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        model, messages, temperature: 0, max_tokens: 512, stream: true, stream_options: { include_usage: true },
      }),
      signal: leaving.signal,
    });
    logid = response.headers.get("X-Log-Id");
    showLines(logid);
    if (!response.ok) {
      const body = await response.text();
      let words = body;
      try { words = JSON.parse(body).error.message; } catch { /* not in OpenAI's format: shown as it is */ }
      return refusal(response, words);
    }
    let first = null, reason = null, usage = null, over = false;
    for await (const { data } of events(response)) {
      if (data === "[DONE]") { over = true; break; }
      const chunk = JSON.parse(data);
      if (chunk.error) return { error: "brokeOff", words: short(chunk.error.message) };
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      reason = choice?.finish_reason ?? reason;
      if (!choice?.delta.content) continue;
      first ??= performance.now();
      outcome.ttft = ((first - began) / 1000).toFixed(3);
      outcome.pieces++;
      outcome.text += choice.delta.content;
      each(choice.delta.content, outcome.ttft);
    }
    if (!over) return { error: "broken" };
    const rate = usage && first ? (usage.completion_tokens - 1) / ((performance.now() - first) / 1000) : 0;
    return {
      ...outcome, figures: "tokens", reason, rate: rate.toFixed(0),
      prompt: usage?.prompt_tokens, completion: usage?.completion_tokens,
    };
  } catch {
    if (leaving.signal.aborted) return { ...outcome, figures: "left" };
    return { error: "network" };
  } finally {
    if (logid) showLines(logid);
  }
}

// shows the log lines of one request, now and again when its last line has been written
async function showLines(logid, again = true) {
  if (!$("lines")) return;
  if (again) put($("logid"), "logidIs", { logid });
  try {
    const response = await fetch("log_lines", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ logid }),
    });
    const { lines } = await response.json();
    if ($("logid").values.logid !== logid) return;
    $("lines").replaceChildren(...lines.map((line) => make("div", { textContent: line })));
  } catch { /* the answer's own error says that no server is there */ }
  if (again) setTimeout(() => showLines(logid, false), 500);
}

function fail(answer, bubble, figures, message, outcome) {
  answer.className = "failed";
  if (figures.textContent) bubble.append("\n", put(make("span"), outcome.error, outcome));
  else put(bubble, outcome.error, outcome);
  const button = put(make("button", { type: "button", className: "again" }), "again");
  button.onclick = () => {
    if (leaving) return;
    answer.previousElementSibling.remove();
    answer.remove();
    send(message);
  };
  answer.append(button);
}

function update() {
  $("send").disabled = Boolean(leaving) || !$("text").value.trim();
  $("stop").disabled = !leaving;
  $("fresh").disabled = Boolean(leaving);
  fit();
}

document.forms[0].addEventListener("submit", (event) => {
  event.preventDefault();
  if (leaving || !$("text").value.trim()) return;
  send($("text").value);
  $("text").value = "";
  update();
  $("text").focus();
});
$("stop").addEventListener("click", () => leaving?.abort());
$("fresh").addEventListener("click", () => {
  turns = [];
  $("log").replaceChildren();
  $("welcome").hidden = false;
  $("text").focus();
});
for (const idea of $("ideas").children) idea.addEventListener("click", () => send(idea.textContent));
$("text").addEventListener("input", update);
update();
countSteps();
