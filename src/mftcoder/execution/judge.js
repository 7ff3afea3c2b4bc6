// The trusted half of a JavaScript run: executes tests, one program's after another's, each in a fresh context, and asks the
// candidate's process for every answer (javascript.py carries the lines). Tests, expected values, console.assert and
// JSON.stringify are this process's own; a candidate sends plain data and can replace nothing here.
"use strict";
const fs = require("fs"), vm = require("vm");

let pending = Buffer.alloc(0);
function receive() {
  for (;;) {
    const end = pending.indexOf(10);
    if (end >= 0) {
      const line = pending.toString("utf8", 0, end);
      pending = pending.subarray(end + 1);
      return JSON.parse(line);
    }
    const chunk = Buffer.alloc(65536);
    const size = fs.readSync(0, chunk, 0, chunk.length, null);
    if (size === 0) process.exit(0);
    pending = Buffer.concat([pending, chunk.subarray(0, size)]);
  }
}
function send(value) {
  const data = Buffer.from(JSON.stringify(value) + "\n");
  for (let done = 0; done < data.length; ) done += fs.writeSync(1, data, done);
}

// Runs inside each program's context, so that its values are of the tests' own Array, Map and Object.
const BRIDGE = `(transport) => {
  const encode = (value) => {
    if (value === null || typeof value === "boolean" || typeof value === "string") return value;
    if (typeof value === "number") return Number.isFinite(value) && !Object.is(value, -0) ? value : { type: "number", value: Object.is(value, -0) ? "-0" : String(value) };
    if (typeof value === "undefined") return { type: "undefined" };
    if (typeof value === "bigint") return { type: "bigint", value: String(value) };
    if (Array.isArray(value)) return { type: "array", value: Array.from(value, encode) };
    if (value instanceof Map) return { type: "map", value: Array.from(value, ([key, item]) => [encode(key), encode(item)]) };
    if (value instanceof Set) return { type: "set", value: Array.from(value, encode) };
    if (value instanceof Date) return { type: "date", value: value.getTime() };
    if (typeof value === "object") return { type: "object", value: Object.entries(value).map(([key, item]) => [key, encode(item)]) };
    throw new TypeError("the tests pass a " + typeof value + ", which cannot cross to the candidate's process");
  };
  const decode = (wire) => {
    if (wire === null || typeof wire !== "object") return wire;
    switch (wire.type) {
      case "number": return Number(wire.value);
      case "undefined": return undefined;
      case "bigint": return BigInt(wire.value);
      case "array": return wire.value.map(decode);
      case "map": return new Map(wire.value.map(([key, item]) => [decode(key), decode(item)]));
      case "set": return new Set(wire.value.map(decode));
      case "date": return new Date(wire.value);
      case "object": return Object.fromEntries(wire.value.map(([key, item]) => [key, decode(item)]));
      default: return Symbol("a value that did not cross");
    }
  };
  const copyBack = (here, there) => {
    if (Array.isArray(here) && Array.isArray(there)) { here.length = 0; for (const item of there) here.push(item); }
    else if (here && there && typeof here === "object" && Object.getPrototypeOf(here) === Object.prototype) {
      for (const key of Object.keys(here)) delete here[key];
      Object.assign(here, there);
    }
  };
  return (name) => (...given) => {
    const sent = given.map(encode);
    const reply = JSON.parse(transport(JSON.stringify({ operation: "call", name, arguments: sent })));
    if ("error" in reply) throw new Error(reply.error);
    if (Array.isArray(reply.after)) reply.after.forEach((item, index) => {
      if (JSON.stringify(item) !== JSON.stringify(sent[index])) copyBack(given[index], decode(item));
    });
    return decode(reply.answer);
  };
}`;

class Failed extends Error {}

function check(program) {
  let failure = null;
  const transport = (question) => { send({ ask: JSON.parse(question) }); return JSON.stringify(receive()); };
  const loaded = receive();
  if ("error" in loaded) throw new Failed(loaded.error);
  const context = vm.createContext({ require });
  const ask = vm.runInContext(BRIDGE, context)(transport);
  context.console = {
    assert: (condition, ...message) => { if (!condition) failure = failure || "assertion failed " + message.join(" "); },
    log() {}, error() {}, warn() {}, info() {},
  };
  context.__ask = ask;
  const names = JSON.stringify(program.entry_point);
  vm.runInContext(`const ${program.entry_point} = __ask(${names}); delete globalThis.__ask;`, context);
  if (program.helpers) vm.runInContext(program.helpers, context);
  vm.runInContext(program.tests, context);
  if (failure) throw new Failed(failure);
}

for (;;) {
  const program = receive();
  try {
    check(program);
    send({ verdict: "passed" });
  } catch (error) {
    send({ verdict: "failed", detail: String(error && error.message || error).slice(0, 500) });
  }
}
