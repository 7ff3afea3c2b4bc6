// The trusted half of a JavaScript run: executes tests, one program's after another's, each in a fresh context, and asks the
// answer's process for every value (relay.py carries the frames). Tests, expected values, console.assert and JSON.stringify are this
// process's own; an answer sends plain data and can replace nothing here.
"use strict";
const fs = require("fs"), vm = require("vm");
const WIRE = 3;

let pending = Buffer.alloc(0);
function receive() {
  for (;;) {
    const size = pending.length < 4 ? Infinity : pending.readUInt32LE(0);
    if (pending.length >= 4 + size) {
      const frame = { kind: String.fromCharCode(pending[4]), body: pending.toString("utf8", 5, 4 + size) };
      pending = pending.subarray(4 + size);
      return frame;
    }
    const chunk = Buffer.alloc(65536);
    const read = fs.readSync(WIRE, chunk, 0, chunk.length, null);
    if (read === 0) process.exit(0);
    pending = Buffer.concat([pending, chunk.subarray(0, read)]);
  }
}
function send(kind, text) {
  const body = Buffer.from(kind + text), size = Buffer.alloc(4);
  size.writeUInt32LE(body.length);
  const data = Buffer.concat([size, body]);
  for (let done = 0; done < data.length; ) done += fs.writeSync(WIRE, data, done);
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
    const reply = JSON.parse(transport(JSON.stringify({ name, arguments: sent })));
    if ("error" in reply) throw new Error(reply.error);
    if (Array.isArray(reply.after)) reply.after.forEach((item, index) => {
      if (JSON.stringify(item) !== JSON.stringify(sent[index])) copyBack(given[index], decode(item));
    });
    return decode(reply.answer);
  };
}`;

class Failed extends Error {}

function ask(question) {
  send("q", question);
  const frame = receive();
  return frame.kind === "a" ? frame.body : JSON.stringify({ error: frame.body });
}

// What a claim of the tests expects, and something else when this claim is the negative control.
const changed = (value, way) => {
  switch (typeof value) {
    case "number": return value + way * (1e18 + 2 * Math.abs(value));
    case "bigint": return value + BigInt(way) * 10n ** 18n;
    case "boolean": return !value;
    default: return value + "?";
  }
};

function check(program) {
  let failure = null, met = program.change < 0;
  const wayOf = (claim) => {  // -1 downwards, 1 upwards, 0 not at all
    if (program.change < 0 || program.change >> 1 !== claim) return 0;
    met = true;
    return program.change % 2 ? 1 : -1;
  };
  const loaded = JSON.parse(ask(JSON.stringify({ name: null })));
  if ("error" in loaded) throw new Failed(loaded.error);
  const context = vm.createContext({ require });
  context.console = {
    assert: (condition, ...message) => { if (!condition) failure = failure || "assertion failed " + message.join(" "); },
    log() {}, error() {}, warn() {}, info() {},
  };
  context.mft_expected = (claim, value) => { const way = wayOf(claim); return way ? changed(value, way) : value; };
  context.mft_holds = (claim, value) => Boolean(value) !== (wayOf(claim) !== 0);
  context.__ask = vm.runInContext(BRIDGE, context)(ask);
  vm.runInContext(`const ${program.entry_point} = __ask(${JSON.stringify(program.entry_point)}); delete globalThis.__ask;`, context);
  if (program.helpers) vm.runInContext(program.helpers, context);
  vm.runInContext(program.tests, context);
  if (failure) throw new Failed(failure);
  return met ? "passed" : "void";
}

for (;;) {
  const program = JSON.parse(receive().body);
  let verdict;
  try {
    verdict = check(program);
  } catch (error) {
    verdict = "failed " + String((error && error.message) || error).slice(0, 500);
  }
  send("v", verdict);
}
