/** Builds the pages into dist/, which the NUVE binary embeds. `node build.mjs --watch` keeps building. */

import { build, context } from 'esbuild';
import { cp, mkdir, rm } from 'node:fs/promises';

const out = 'dist';
const options = {
  entryPoints: [
    { in: 'src/ui/main.ts', out: 'page' },
    { in: 'src/ui/style.css', out: 'page' },
    { in: 'src/bare/main.ts', out: 'bare' },
  ],
  outdir: out,
  bundle: true,
  // No external address: the pages must work in a network without the Internet.
  format: 'iife',
  target: ['chrome111', 'firefox120', 'safari16.4'],
  minify: !process.argv.includes('--watch'),
  sourcemap: process.argv.includes('--watch') ? 'inline' : false,
  legalComments: 'linked',
  logLevel: 'info',
};

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
await cp('static', out, { recursive: true });
if (process.argv.includes('--watch')) await (await context(options)).watch();
else await build(options);
