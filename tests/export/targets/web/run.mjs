// Runs an ONNX model in onnxruntime-web's WebAssembly.
//
// stdin: {"model": path, "state": [name], "steps": [{name: {"type", "dims", "data"}}]}; stdout: each step's outputs,
// likewise. From the second step on, a state is the output next_NAME of the step before.
import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import * as ort from "onnxruntime-web";

const encode = (value) => (typeof value === "bigint" ? Number(value) : value);
const decode = (type) => (type === "int64" ? BigInt : Number);

ort.env.wasm.numThreads = 1;
const { model, state, steps } = JSON.parse(await text(process.stdin));
const session = await ort.InferenceSession.create(await readFile(model), { executionProviders: ["wasm"] });
const tensor = ({ type, dims, data }) => new ort.Tensor(type, data.map(decode(type)), dims);
const answers = [];
let carried = {};
for (const feeds of steps) {
  const tensors = Object.fromEntries(Object.entries(feeds).map(([name, array]) => [name, tensor(array)]));
  const outputs = await session.run({ ...tensors, ...carried });
  carried = Object.fromEntries(state.map((name) => [name, outputs[`next_${name}`]]));
  const encoded = Object.entries(outputs).map(([name, { type, dims, data }]) => [
    name,
    { type, dims, data: Array.from(data, encode) },
  ]);
  answers.push(Object.fromEntries(encoded));
}
console.log(JSON.stringify(answers));
