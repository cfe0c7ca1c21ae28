// Runs ONNX models in onnxruntime-web's WebAssembly, each named by a line of stdin and answered by a line of stdout.
//
// A line of stdin: {"model": path, "state": [name], "steps": [{name: {"type", "dims", "data"}}]}. A line of stdout: each
// step's outputs, likewise, or an error as text. From the second step on, a state is the output next_NAME of the step
// before.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import * as ort from "onnxruntime-web";

const encode = (value) => (typeof value === "bigint" ? Number(value) : value);
const decode = (type) => (type === "int64" ? BigInt : Number);
const tensor = ({ type, dims, data }) => new ort.Tensor(type, data.map(decode(type)), dims);

async function run({ model, state, steps }) {
  const session = await ort.InferenceSession.create(await readFile(model), { executionProviders: ["wasm"] });
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
  await session.release();
  return answers;
}

ort.env.wasm.numThreads = 1;
for await (const line of createInterface({ input: process.stdin })) {
  const answer = await run(JSON.parse(line)).catch(String);
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
