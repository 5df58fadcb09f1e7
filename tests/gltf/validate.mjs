// Usage: node validate.mjs FILE: prints the Khronos validator's report as JSON.
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import validator from 'gltf-validator';

const path = process.argv[2];
const beside = async (uri) => new Uint8Array(readFileSync(join(dirname(path), decodeURIComponent(uri))));
const options = { maxIssues: 50, externalResourceFunction: beside };
const report = await validator.validateBytes(new Uint8Array(readFileSync(path)), options);
process.stdout.write(JSON.stringify(report));
