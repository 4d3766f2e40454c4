// usage: TOKEN=… node console.mjs URL
// The console's own script against a running node, on as much of a page as it needs: a device asks to be let in and is
// approved, the rights of its class are changed, and its tokens are taken back.
import assert from "node:assert/strict";

const [base] = process.argv.slice(2);
const token = process.env.TOKEN;
const device = `console-${Date.now()}`, table = `t${Date.now()}`;

class Element {
  constructor(tag) {
    Object.assign(this, { tagName: tag.toUpperCase(), children: [], text: "", value: "", heard: {} });
  }
  get textContent() {
    return this.text + this.children.map((child) => child.textContent).join(" ");
  }
  set textContent(text) {
    this.children = [];
    this.text = String(text);
  }
  get childElementCount() {
    return this.children.length;
  }
  get firstElementChild() {
    return this.children[0];
  }
  append(...children) {
    this.children.push(...children);
  }
  prepend(...children) {
    this.children.unshift(...children);
  }
  replaceChildren(...children) {
    this.text = "";
    this.children = children;
  }
  addEventListener(name, heard) {
    this.heard[name] = heard;
  }
  fire(name, more = {}) {
    return this.heard[name]({ preventDefault() {}, target: this, ...more });
  }
  all(tag) {
    return this.children.flatMap((child) => [...(child.tagName === tag ? [child] : []), ...child.all(tag)]);
  }
}

const page = await (await fetch(new URL("console", base))).text();
const elements = {};
for (const [, tag, id] of page.matchAll(/<(\w+) id="(\w+)"/g)) elements[id] = new Element(tag);
const at = (id) => elements[id];

let again = () => {}, confirmed = [];
const globals = {
  document: { getElementById: at, createElement: (tag) => new Element(tag) },
  location: { href: new URL("console", base).href, protocol: new URL(base).protocol },
  WebSocket: class { close() {} },
  fetch: (path, asked) => fetch(new URL(path, base), asked),
  confirm: (text) => confirmed.push(text) > 0,
  setTimeout: (next) => { again = next; },
  clearTimeout: () => { again = () => {}; },
};
const script = page.match(/<script nonce="\w+">([^]*)<\/script>/)[1];
new Function(...Object.keys(globals), script)(...Object.values(globals));

// Looks again and again until it holds, as the page does by itself.
async function shows(what, holds) {
  const end = Date.now() + 20_000;
  for (;;) {
    const found = holds();
    if (found) return found;
    assert.ok(Date.now() < end, `never: ${what}: ${at("state").textContent} ${at("done").textContent}`);
    const next = again;
    again = () => {};
    next();
    await new Promise((done) => { setTimeout(done, 50); });
  }
}
const row = (id, text) => at(id).children.find((line) => line.textContent.includes(text));

const asked = await (await fetch(new URL("device/pair", base), {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ device_id: device, name: "by the door" }),
})).json();
const poll = async () => {
  const headers = { Authorization: `Bearer ${asked.secret}` };
  return (await fetch(new URL(`device/pair/${asked.code}`, base), { headers })).json();
};

at("token").value = token;
at("form").fire("submit");
const waiting = await shows("the pairing", () => row("pairings", asked.code));
assert.match(waiting.textContent, /by the door 127\.0\.0\.1/);
assert.equal(waiting.all("INPUT")[0].value, device);
waiting.all("SELECT")[0].value = "inventory_assistant";
waiting.all("BUTTON").find((button) => button.textContent === "Approve").fire("click");
await shows("the approval", () => row("pairings", `approved ${device} inventory_assistant`));
const given = await poll();
assert.deepEqual([given.status, given.class], ["approved", "inventory_assistant"]);

// What is refused is said, and nothing is done.
const as = { headers: { Authorization: `Bearer ${given.token}`, "Content-Type": "application/json" } };
const register = await fetch(new URL("device/register", base), { ...as, method: "POST", body: JSON.stringify({ device_id: device }) });
assert.equal(register.status, 200);
const press = (form, what) => at(form).fire("submit", { submitter: { value: what } });
at("who").value = `${device}-nobody`;
await press("device", "forget");
assert.match(at("done").textContent, /forget .*3004/);

Object.assign(at("class"), { value: "inventory_assistant" });
Object.assign(at("table"), { value: table });
Object.assign(at("right"), { value: "none" });
press("rights");
await shows("the right", () => row("access", `${table}: none`));
const read = () => fetch(new URL(`data/${table}/1`, base), as).then((answer) => answer.status);
assert.equal(await read(), 403);
at("right").value = "";
press("rights");
await shows("the right to be as all others", () => row("access", "inventory_assistant") && !row("access", `${table}: none`));
assert.equal(await read(), 200);

const line = await shows("the device", () => row("devices", device));
line.closest = () => line;
at("devices").fire("click", { target: line });
assert.equal(at("who").value, device);
await press("device", "suspend");
assert.equal(await read(), 403);
await press("device", "why");
assert.match(at("report").textContent, /suspended true/);
await press("device", "resume");
assert.equal(await read(), 200);
await press("device", "revoke");
assert.match(at("report").textContent, /confirmed changes 0/);
assert.equal(await read(), 401);
assert.deepEqual(confirmed.map((text) => text.split("?")[0]), [`forget ${device}-nobody`, `suspend ${device}`, `revoke ${device}`]);
console.log("console: a device was let in, its rights were changed, and it was revoked");
