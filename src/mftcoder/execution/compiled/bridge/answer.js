// The untrusted process of a JavaScript run: it holds the answer's program and replies to the judge's questions on descriptor 3.
// No part of the tests is in this process. Whatever the answer replaces here changes its own values only.
"use strict";
{
  const fs = require("fs"), vm = require("vm"), Module = require("module"), crypto = require("crypto");
  const { stringify, parse } = JSON;

  // One problem of HumanEval uses the package js-md5; this is its only function.
  const load = Module._load;
  Module._load = function (name, ...rest) {
    return name === "js-md5" ? (text) => crypto.createHash("md5").update(text).digest("hex") : load.call(this, name, ...rest);
  };

  let pending = Buffer.alloc(0);
  const receive = () => {
    for (;;) {
      const size = pending.length < 4 ? Infinity : pending.readUInt32LE(0);
      if (pending.length >= 4 + size) {
        const body = pending.toString("utf8", 5, 4 + size);
        pending = pending.subarray(4 + size);
        return body;
      }
      const chunk = Buffer.alloc(65536);
      const read = fs.readSync(3, chunk, 0, chunk.length, null);
      if (read === 0) process.exit(0);
      pending = Buffer.concat([pending, chunk.subarray(0, read)]);
    }
  };
  const send = (kind, text) => {
    const body = Buffer.from(kind + text), size = Buffer.alloc(4);
    size.writeUInt32LE(body.length);
    const data = Buffer.concat([size, body]);
    for (let done = 0; done < data.length; ) done += fs.writeSync(3, data, done);
  };

  const { encode, decode } = vm.runInThisContext(fs.readFileSync(`${__dirname}/values.js`, "utf8"), { filename: "values.js" })(
    (value) => {
      if (value instanceof Number || value instanceof String || value instanceof Boolean) return { type: "object", value: [] };
      return typeof value === "object" ? null : { type: "opaque" };
    },
    () => { throw new TypeError("no such value"); },
  );
  const text = (error) => { try { return String(error).slice(0, 500); } catch { return "an exception"; } };

  // Loaded as Node loads a file: inside a function, where a stray `return` is allowed, and strict if it begins with "use strict".
  // `find` evaluates a name of the program.
  let find, failure = null;
  const source = receive();
  const strict = /^(?:\s|\/\/[^\n]*\n|\/\*(?:[^*]|\*(?!\/))*\*\/)*(["'])use strict\1\s*(?:;|\n|$)/.test(source) ? "'use strict'; " : "";
  const wrapped = `(function (exports, require, module, expose) { ${strict}expose((name) => eval(name)); ${source}\n})`;
  try {
    vm.runInThisContext(wrapped, { filename: "answer" })({}, require, { exports: {} }, (lookup) => { find = lookup; });
  } catch (error) {
    failure = text(error);
  }
  for (;;) {
    const question = parse(receive());
    try {
      if (failure !== null) throw failure;
      if (question.name === null) { send("a", "{}"); continue; }
      const target = find(question.name);
      const given = question.arguments.map(decode);
      const answer = encode(target(...given));
      send("a", stringify({ answer, after: given.map(encode) }));
    } catch (error) {
      send("e", text(error));
    }
  }
}
