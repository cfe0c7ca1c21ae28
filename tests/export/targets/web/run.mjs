// Runs an ONNX model in onnxruntime-web's WebAssembly.
//
// stdin: {"model": path, "feeds": {name: {"type", "dims", "data"}}}; stdout: the outputs, likewise.
import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import * as ort from "onnxruntime-web";

const encode = (value) => (typeof value === "bigint" ? Number(value) : value);
const decode = (type) => (type === "int64" ? BigInt : Number);

ort.env.wasm.numThreads = 1;
const { model, feeds } = JSON.parse(await text(process.stdin));
const session = await ort.InferenceSession.create(await readFile(model), { executionProviders: ["wasm"] });
const tensors = Object.entries(feeds).map(([name, { type, dims, data }]) => [
  name,
  new ort.Tensor(type, data.map(decode(type)), dims),
]);
const outputs = await session.run(Object.fromEntries(tensors));
const answer = Object.entries(outputs).map(([name, { type, dims, data }]) => [
  name,
  { type, dims, data: Array.from(data, encode) },
]);
console.log(JSON.stringify(Object.fromEntries(answer)));
