// Plain values as JSON and back, for the judge and the candidate. The file is one expression, which each evaluates in the context
// whose Array, Map and Object its values must have. `special(value)` encodes an object or function in another way, throws, or returns
// nothing for a plain object; `unknown(wire)` decodes a type that is not listed.
(special, unknown) => {
  "use strict";
  const encode = (value) => {
    if (value === null || typeof value === "boolean" || typeof value === "string") return value;
    if (typeof value === "number") return Number.isFinite(value) && !Object.is(value, -0) ? value : { type: "number", value: Object.is(value, -0) ? "-0" : String(value) };
    if (typeof value === "undefined") return { type: "undefined" };
    if (typeof value === "bigint") return { type: "bigint", value: String(value) };
    if (Array.isArray(value)) return { type: "array", value: Array.from(value, encode) };
    if (value instanceof Map) return { type: "map", value: Array.from(value, ([key, item]) => [encode(key), encode(item)]) };
    if (value instanceof Set) return { type: "set", value: Array.from(value, encode) };
    if (value instanceof Date) return { type: "date", value: value.getTime() };
    return special(value) || { type: "object", value: Object.entries(value).map(([key, item]) => [key, encode(item)]) };
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
      default: return unknown(wire);
    }
  };
  return { encode, decode };
}
