/** Bundles the client for Node and runs the unit tests. */

import { build } from 'esbuild';
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';

await build({ entryPoints: ['test/entry.ts'], outfile: 'node_modules/.cache/roomlog/client.cjs', bundle: true, platform: 'node', format: 'cjs', logLevel: 'warning' });
const files = process.argv.slice(2);
const tests = files.length ? files : readdirSync('test').filter((name) => name.endsWith('.test.mjs')).map((name) => `test/${name}`);
process.exit(spawnSync(process.execPath, ['--test', ...tests], { stdio: 'inherit' }).status ?? 1);
