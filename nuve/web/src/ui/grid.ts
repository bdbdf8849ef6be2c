/** How large tiles may be: the pure arithmetic behind the grid. */

export interface GridLayout {
  columns: number;
  rows: number;
  /** px */
  width: number;
  height: number;
}

/** Cameras are 16:9; a tile may be cropped to something taller where that uses the space better: on a wide screen to 4:3, on an upright one to 9:16. */
const WIDEST = 16 / 9;
const NARROWEST_WIDE = 4 / 3;
const NARROWEST_UPRIGHT = 9 / 16;
/** A wide tile shows more of a person's surroundings, a tall one less: crop is worth this much area. */
const CROP_PENALTY = 0.12;

/** The columns that give `count` equal tiles the most room in `width`×`height` px with `gap` px between them. */
export function fitGrid(count: number, width: number, height: number, gap: number): GridLayout {
  let best: GridLayout = { columns: 1, rows: Math.max(1, count), width: 0, height: 0 };
  let bestValue = -1;
  const narrowest = width > height ? NARROWEST_WIDE : NARROWEST_UPRIGHT;
  for (let columns = 1; columns <= Math.max(1, count); columns++) {
    const rows = Math.ceil(count / columns);
    const cellWidth = (width - gap * (columns - 1)) / columns;
    const cellHeight = (height - gap * (rows - 1)) / rows;
    if (cellWidth <= 0 || cellHeight <= 0) continue;
    const tileWidth = Math.min(cellWidth, cellHeight * WIDEST);
    const tileHeight = Math.min(cellHeight, tileWidth / narrowest);
    const crop = 1 - tileWidth / tileHeight / WIDEST;
    const value = tileWidth * tileHeight * (1 - CROP_PENALTY * crop);
    if (value > bestValue) {
      bestValue = value;
      best = { columns, rows, width: Math.floor(tileWidth), height: Math.floor(tileHeight) };
    }
  }
  return best;
}
