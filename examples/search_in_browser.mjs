/**
 * Searches images with text in a browser tab, with a text encoder that `hf-cots export` wrote:
 *
 *     npm install onnxruntime-web @huggingface/tokenizers
 *
 *     const encode = await loadTextEncoder("https://example.org/my_export/");
 *     const query = await encode("a red circle");
 *     const matches = search(query, imageEmbeds, 5); // [{ row: 3, score: 0.41 }, ...]
 *
 * `imageEmbeds` is a Float32Array of the (images, dim) embeddings, row by row: in Python,
 * `load_encoder("my_export").encode_images(images).tofile("images.f32")`.
 */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web/wasm";

/** Fetch one file of the export folder. */
async function fetchFile(folder, name) {
  const response = await fetch(new URL(name, folder));
  if (!response.ok) throw new Error(`${response.url}: ${response.status} ${response.statusText}`);
  return response;
}

/** Load the text encoder of an export folder, whose URL ends in "/"; returns a function from a text to its (dim) embedding. */
export async function loadTextEncoder(folder) {
  const names = ["tokenizer.json", "tokenizer_config.json", "export.json"];
  const [tokens, config, exported] = await Promise.all(names.map(async (name) => (await fetchFile(folder, name)).json()));
  const model = await (await fetchFile(folder, "text_encoder.onnx")).arrayBuffer();
  const tokenizer = new Tokenizer(tokens, config);
  const session = await ort.InferenceSession.create(model);
  const longest = exported.text_options.max_length;
  return async (text) => {
    let { ids } = tokenizer.encode(text);
    if (ids.length > longest) ids = [...ids.slice(0, longest - 1), ids.at(-1)]; // the last token ends the text
    const row = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
    const inputs = { input_ids: row(ids), attention_mask: row(ids.map(() => 1)) };
    const given = Object.fromEntries(session.inputNames.map((name) => [name, inputs[name]]));
    return (await session.run(given)).embeds.data;
  };
}

/** The rows of the k images nearest to a text, with their cosines, best first. */
export function search(query, imageEmbeds, k) {
  const score = (row) => query.reduce((sum, value, i) => sum + value * imageEmbeds[row * query.length + i], 0);
  const rows = Array.from({ length: imageEmbeds.length / query.length }, (_, row) => ({ row, score: score(row) }));
  return rows.sort((a, b) => b.score - a.score).slice(0, k);
}
