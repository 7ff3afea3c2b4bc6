// The trusted process of a JavaScript run: it executes the tests of one program after another, each in a new context, and asks the
// candidate's process for every value (relay.py passes the frames on). An answer sends plain data and can replace nothing here:
// neither tests nor expected values, neither console.assert nor JSON.stringify.
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

// Evaluated inside each program's context, so that decoded values are of the tests' own Array, Map and Object.
const BRIDGE = `(transport) => {
  const { encode, decode } = (${fs.readFileSync(`${__dirname}/values.js`, "utf8")})(
    (value) => { if (typeof value !== "object") throw new TypeError("the tests pass a " + typeof value + ", which cannot cross to the candidate's process"); },
    () => Symbol("a value that did not cross"),
  );
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

// Another value of the same type, for a negative control. `direction`: -1 smaller, 1 larger.
const changed = (value, direction) => {
  switch (typeof value) {
    case "number": return value + direction * (1e18 + 2 * Math.abs(value));
    case "bigint": return value + BigInt(direction) * 10n ** 18n;
    case "boolean": return !value;
    default: return value + "?";
  }
};

function check(program) {
  let failure = null, reached = program.change < 0;
  const directionOf = (claim) => {  // -1 smaller, 1 larger, 0 unchanged
    if (program.change < 0 || program.change >> 1 !== claim) return 0;
    reached = true;
    return program.change % 2 ? 1 : -1;
  };
  const loaded = JSON.parse(ask(JSON.stringify({ name: null })));
  if ("error" in loaded) throw new Failed(loaded.error);
  const context = vm.createContext({ require });
  context.console = {
    assert: (condition, ...message) => { if (!condition) failure = failure || "assertion failed " + message.join(" "); },
    log() {}, error() {}, warn() {}, info() {},
  };
  context.mft_expected = (claim, value) => { const direction = directionOf(claim); return direction ? changed(value, direction) : value; };
  context.mft_holds = (claim, value) => Boolean(value) !== (directionOf(claim) !== 0);
  context.__ask = vm.runInContext(BRIDGE, context)(ask);
  vm.runInContext(`const ${program.entry_point} = __ask(${JSON.stringify(program.entry_point)}); delete globalThis.__ask;`, context);
  if (program.helpers) vm.runInContext(program.helpers, context);
  vm.runInContext(program.tests, context);
  if (failure) throw new Failed(failure);
  return reached ? "passed" : "void";
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
