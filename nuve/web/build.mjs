/** Builds the pages into dist/, which the NUVE binary embeds. `node build.mjs --watch` keeps building. */

import { build, context } from 'esbuild';
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';

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
  legalComments: 'none', // See licenses.txt.
  // While watching, changes of the package show at once.
  alias: process.argv.includes('--watch') ? { 'roomlog-client': './client/src/index.ts' } : {},
  logLevel: 'info',
};

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
await cp('static', out, { recursive: true });
if (process.argv.includes('--watch')) await (await context(options)).watch();
else {
  const { metafile } = await build({ ...options, metafile: true });
  // The package as one module, for pages that are written without a bundler.
  await build({ ...options, entryPoints: [{ in: 'roomlog-client', out: 'client' }], format: 'esm' });
  await licenses(metafile);
}

/** The licences of what is bundled ask to travel with it. */
async function licenses({ inputs }) {
  const packages = new Set(Object.keys(inputs).map((path) => /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]).filter(Boolean));
  const texts = [];
  for (const folder of [...packages].sort()) {
    const { name, version, license } = JSON.parse(await readFile(`${folder}/package.json`, 'utf8'));
    const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
    texts.push(`${name} ${version} (${license})\n\n${file ? (await readFile(`${folder}/${file}`, 'utf8')).trim() : ''}\n`);
  }
  await writeFile(`${out}/licenses.txt`, texts.join(`\n${'-'.repeat(80)}\n\n`));
}
