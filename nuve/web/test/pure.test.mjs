/** The arithmetic: waits and tiles. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { backoff, fitGrid, initials, RECONNECT } from './helpers.mjs';

test('waits double up to the cap, and never fall below half a step', () => {
  assert.equal(backoff(0, 0), 0);
  assert.ok(backoff(0, 0.999) <= 250);
  assert.deepEqual([1, 2, 3, 4, 5, 50].map((attempt) => backoff(attempt, 0.999999)), [500, 1000, 2000, 4000, 4000, 4000]);
  assert.deepEqual([1, 2, 3, 4, 5, 50].map((attempt) => backoff(attempt, 0)), [250, 500, 1000, 2000, 2000, 2000]);
});

test('a client tries at least seven times before the server lets go of it', () => {
  let time = 0;
  let tries = 0;
  while (time <= 30_000) time += backoff(tries++, 0.999999, RECONNECT);
  assert.ok(tries >= 7, `${tries}`);
});

test('tiles fill a desktop in rows and a phone in columns, and never overflow', () => {
  assert.deepEqual([fitGrid(2, 1280, 640, 10).columns, fitGrid(4, 1280, 640, 10).columns, fitGrid(12, 1280, 640, 10).columns], [2, 2, 4]);
  assert.deepEqual([fitGrid(2, 374, 700, 10).columns, fitGrid(4, 374, 700, 10).columns, fitGrid(12, 374, 700, 10).columns], [1, 2, 2]);
  for (let count = 1; count <= 30; count++) {
    for (const [width, height] of [[1280, 640], [374, 700], [800, 300], [1900, 1000]]) {
      const { columns, rows, width: w, height: h } = fitGrid(count, width, height, 10);
      assert.ok(columns * rows >= count);
      assert.ok(columns * w + (columns - 1) * 10 <= width && rows * h + (rows - 1) * 10 <= height, `${count} in ${width}×${height}`);
    }
  }
});

test('initials are letters people would choose', () => {
  assert.deepEqual(['Ann Smith', 'bob', ' Ève  de la  Croix ', '', '👩🏽 Zed'].map(initials), ['AS', 'B', 'ÈC', '?', '👩Z']);
});
