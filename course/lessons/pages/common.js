// What the chat pages share: their texts in both languages, and the parts of a conversation.
"use strict";

// the longest message of exercises 1.3 and 2.2
const LONGEST = 4000;

// each in English and in Chinese
const WORDS = {
  send: ["Send", "发送"],
  stop: ["Stop", "停止"],
  label: ["Your message", "你的消息"],
  placeholder: ["Write a message", "写一条消息"],
  keys: ["Enter: send · Shift+Enter: new line", "Enter 发送，Shift+Enter 换行"],
  count: ["{n} of {limit} characters", "{n} / {limit} 个字符"],
  checking: ["Looking for the server", "正在寻找服务器"],
  up: ["Server is up", "服务器在线"],
  down: ["No server", "没有服务器"],
  network: [
    "No server is answering. Start it again: this page will notice when it is back.",
    "服务器没有回应。请重新启动它：恢复之后，本页会自动发现。",
  ],
  status: ["The server answered with status {status}. {words}", "服务器返回了状态码 {status}。{words}"],
  limited: [
    "Too many requests (429): the server limits how many each address may send. Try again in a while.",
    "请求太多了（429）：服务器对每个地址的请求次数有限制。请过一会儿再试。",
  ],
  limitedFor: [
    "Too many requests (429): the server limits how many each address may send. Try again in {s} s.",
    "请求太多了（429）：服务器对每个地址的请求次数有限制。请 {s} 秒后再试。",
  ],

  title: ["Say something to your model", "对你的模型说点什么吧"],
  idea1: ["你好", "你好"],
  idea2: ["What is a token?", "什么是 token？"],
  idea3: ["Tell me a story.", "讲一个故事。"],
  conversation: ["Conversation", "对话"],
  you: ["You:", "你："],
  model: ["Model:", "模型："],
  waiting: ["The model is working", "模型正在工作"],
  seconds: ["{s} s", "{s} 秒"],
  nothing: ["(an empty answer)", "（空的回答）"],
  whole: ["Show all", "显示全部"],
  again: ["Try again", "再试一次"],
  edit: ["Edit the message", "修改消息"],

  promptsSafe: [
    "A control token that you type is just text here: exercise 1.5 builds the prompt's ids.",
    "你输入的控制 token 在这里只是文本：提示词的 id 由练习 1.5 生成。",
  ],
  promptsPlain: [
    "Until you pass exercise 1.5, a control token that you type is treated as a real one.",
    "通过练习 1.5 之前，你输入的控制 token 会当成真的来处理。",
  ],

  stage1: ["Stage 1: one endpoint", "第 1 阶段：一个端点"],
  lead1: [
    "What you type goes to your own server as POST /chat. Its answer appears here.",
    "你输入的内容会以 POST /chat 发给你自己的服务器，回答显示在这里。",
  ],
  note1: [
    "No memory or streaming yet: one message, one whole answer.",
    "还没有记忆和流式输出：一条消息，一个完整回答。",
  ],
  exchange: ["What was sent and what came back", "发送和收到的内容"],
  refused: ["The server refused this text (422). {words}", "服务器拒绝了这段文字（422）。{words}"],
  broke: [
    "The server failed on this message (500). The reason is in the server's log.",
    "服务器处理这条消息时出错（500）。原因写在服务器的日志里。",
  ],
  shape: [
    'The answer should be JSON like {"result": "…"}. The server sent: {words}',
    '回答应该是 {"result": "…"} 这样的 JSON，实际收到：{words}',
  ],

  stage2: ["Stage 2: streaming", "第 2 阶段：流式输出"],
  sendBoth: ["Send to both", "两种方式都发送"],
  story: ["Tell me a story", "讲一个故事。"],
  note2: [
    "Your message goes over both transports, one after the other. Watch the number of forward passes " +
      "when you stop an answer: the model stops, too.",
    "同一条消息先后用两种方式发送。停止回答时，请看前向计算次数：模型也停了。",
  ],
  slow: [
    "The model is tiny: to see it work, slow it down to about 25 steps a second, the pace of a larger one.",
    "模型很小，放慢到每秒约 25 步，和更大的模型一样快，才看得清。",
  ],
  steps: ["forward passes: {n}", "前向计算：{n} 次"],
  running: ["{pieces} pieces · first after {ttft} s", "{pieces} 段 · 首段 {ttft} 秒"],
  done: [
    "{pieces} pieces · first after {ttft} s · {rate} pieces/s",
    "{pieces} 段 · 首段 {ttft} 秒 · 每秒 {rate} 段",
  ],
  stopped: [
    "{pieces} pieces · first after {ttft} s · {rate} pieces/s · stopped",
    "{pieces} 段 · 首段 {ttft} 秒 · 每秒 {rate} 段 · 已停止",
  ],
  broken: ["The connection broke.", "连接中断了。"],

  stage3: ["Stage 3: an OpenAI endpoint", "第 3 阶段：OpenAI 接口"],
  lead3: [
    "Each time, the whole conversation goes to your own server as POST /v1/chat/completions.",
    "每次都把整个对话以 POST /v1/chat/completions 发给你自己的服务器。",
  ],
  fresh: ["New conversation", "新对话"],
  firstAfter: ["first text after {ttft} s", "首段文字 {ttft} 秒"],
  tokens: [
    "first text after {ttft} s · {rate} tokens/s · {prompt} + {completion} tokens · {reason}",
    "首段文字 {ttft} 秒 · 每秒 {rate} 个 token · {prompt} + {completion} 个 token · {reason}",
  ],
  left: ["first text after {ttft} s · {pieces} pieces · stopped", "首段文字 {ttft} 秒 · {pieces} 段 · 已停止"],
  brokeOff: ["The server broke off the answer: {words}", "服务器中断了回答：{words}"],
  lines: ["The log of the last request", "最近一次请求的日志"],
  noLines: ["Send a message, and its log lines from work/logs/ appear here.", "发一条消息，它在 work/logs/ 里的日志行就会显示在这里。"],
  logidIs: ["X-Log-Id: {logid}", "X-Log-Id：{logid}"],

  stage4: ["Stage 4: production", "第 4 阶段：生产环境"],
  lead4: [
    "Each step of the model works on your question and on everyone else's at the same time.",
    "同一时刻的所有提问共用模型的每一步，你的也在其中。",
  ],
  toDashboard: ["Dashboard", "仪表盘"],
  toChat: ["Chat", "聊天"],
  overloaded: [
    "The server is full (503): too many requests are running or waiting. Try again in a while.",
    "服务器已满（503）：正在回答和排队的请求太多。请过一会儿再试。",
  ],
  dashboard: ["What is happening in the server", "服务器里正在发生什么"],
  dashRequests: ["Requests", "请求"],
  dashRunning: ["running", "正在回答"],
  dashWaiting: ["waiting", "排队"],
  dashRate: ["Tokens per second", "每秒 token 数"],
  dashTokens: ["all answers together", "所有回答合计"],
  dashFirst: ["Time to first token, ms", "首 token 延迟（毫秒）"],
  dashMean: ["mean over the last second", "最近一秒的平均值"],
  dashEnded: ["Finished answers", "已结束的回答"],
  dashOutcomes: [
    "{stop} ended normally · {length} reached their limit · {cancelled} were cancelled · {error} failed",
    "{stop} 个自行结束 · {length} 个到达上限 · {cancelled} 个中途取消 · {error} 个出错",
  ],
  dashEngine: ["Engine: {state}, restarted {restarts} times", "引擎：{state}，已重启 {restarts} 次"],
  engineUp: ["alive", "运行中"],
  engineDown: ["down", "未运行"],
  dashAgo: ["{s} s ago", "{s} 秒前"],
  dashNow: ["now", "现在"],
};

const $ = (id) => document.getElementById(id);

let language = (navigator.language || "").startsWith("zh") ? "zh" : "en";
try { language = localStorage.getItem("language") || language; } catch { /* then the choice is not stored */ }

function say(key, values = {}) {
  const text = WORDS[key][language === "zh" ? 1 : 0];
  return text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

// the key of an element's text is stored with it, so that the text can be shown again in the other language
function put(element, key, values = {}) {
  element.dataset.say = key;
  element.values = values;
  element.textContent = say(key, values);
  return element;
}

function speak() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-say]"))
    element.textContent = say(element.dataset.say, element.values);
  for (const element of document.querySelectorAll("[data-say-placeholder]"))
    element.placeholder = say(element.dataset.sayPlaceholder);
  for (const element of document.querySelectorAll("[data-say-label]"))
    element.setAttribute("aria-label", say(element.dataset.sayLabel));
  $("language").textContent = language === "zh" ? "English" : "中文";
  $("language").lang = language === "zh" ? "en" : "zh-CN";
}

$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  try { localStorage.setItem("language", language); } catch { /* then the choice is not stored */ }
  speak();
});
speak();

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function short(words) {
  return words.length > 300 ? words.slice(0, 300) + "…" : words;
}

// what a response that is not a 200 says: a key of WORDS, and its values
function refusal(response, words) {
  const s = response.headers.get("Retry-After");
  if (response.status === 429) return { error: /^\d+$/.test(s) ? "limitedFor" : "limited", s };
  if (response.status === 503 && s) return { error: "overloaded" };
  return { error: "status", status: response.status, words: short(words) };
}

// the server-sent events of a response, each with its name and its data, as they arrive
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const texts = (rest + value).split(/\r?\n\r?\n/);
    rest = texts.pop();
    for (const text of texts) {
      const lines = text.split(/\r?\n/);
      const field = (name) => lines.filter((line) => line.startsWith(`${name}:`))
        .map((line) => line.slice(name.length + 1).replace(/^ /, "")).join("\n");
      if (field("data")) yield { name: field("event"), data: field("data") };
    }
  }
}

function enterSubmits(event) {
  // while a Chinese input method is open, Enter belongs to it
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}
$("text")?.addEventListener("keydown", enterSubmits);

// The items of a conversation: the user's own messages, and answers, which may have failed.

function item(kind, who, bubble, ...below) {
  const li = make("li", { className: kind }, put(make("span", { className: "hidden" }), who));
  li.append(bubble, ...below);
  return li;
}

function show(element) {
  $("welcome").hidden = true;
  $("log").append(element);
  toEnd();
}

function showMine(message) {
  const bubble = make("div", { className: "bubble", textContent: message });
  const mine = item("mine cut", "you", bubble);
  show(mine);
  const whole = put(make("button", { type: "button", className: "whole" }), "whole");
  whole.onclick = () => {
    mine.classList.remove("cut");
    whole.remove();
  };
  if (bubble.scrollHeight > bubble.clientHeight) mine.append(whole);
  else mine.classList.remove("cut");
}

function dots() {
  return make("span", { className: "dots" }, make("i"), make("i"), make("i"));
}

function atEnd() {
  const main = document.querySelector("main");
  return main.scrollHeight - main.scrollTop - main.clientHeight < 40;
}

function toEnd() {
  const main = document.querySelector("main");
  main.scrollTop = main.scrollHeight;
}

// the text field grows with its text
function fit() {
  const stay = atEnd();
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
  if (stay) toEnd();
}

function setStatus(state) {
  if (state === $("status").dataset.state) return;
  $("status").dataset.state = state;
  put($("status"), state);
  if (state === "down") setTimeout(look, 2000);
}

// asks once, and again only while the server is down: a quiet log is easier to read
async function look() {
  try {
    await fetch("health", { cache: "no-store" });
    setStatus("up");
  } catch {
    if ($("status").dataset.state === "down") setTimeout(look, 2000);
    setStatus("down");
  }
}

// says who makes the ids of the prompts, if the page has a place for it
async function sayPrompts() {
  try {
    const { safe } = await (await fetch("prompts", { cache: "no-store" })).json();
    put($("prompts"), safe ? "promptsSafe" : "promptsPlain");
  } catch { /* the status says that no server is there */ }
}

if ($("prompts")) sayPrompts();

// What the model is doing: the number of its steps, and its pace. The pace applies to all clients of the server,
// so the model is slow only while it is answering this page.

const LARGE = 100e6; // a model with more parameters than this is slow enough
let answering = false;

async function countSteps() {
  try {
    const { steps, parameters } = await (await fetch("model", { cache: "no-store" })).json();
    if ($("pace")) $("pace").hidden = parameters > LARGE;
    put($("steps"), "steps", { n: steps });
    $("steps").dataset.n = steps;
  } catch {
    put($("steps"), "down");
  }
  setTimeout(countSteps, 500);
}

async function setPace(is = answering) {
  if (!$("slow")) return;
  answering = is;
  const slow = answering && $("slow").checked && !$("pace").hidden;
  return fetch("pace", {
    method: "PUT",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ pause_ms: slow ? 40 : 0 }),
    keepalive: true,
  }).catch(() => { /* the answers will say that no server is there */ });
}

if ($("slow")) {
  $("slow").addEventListener("change", () => setPace());
  addEventListener("pagehide", () => setPace(false));
}
