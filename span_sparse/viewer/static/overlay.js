// Scores over the slide. Every patch is a rectangle in level-0 pixels; its corners are carried to the screen and rounded
// to device pixels, so that neighbours meet without a seam and the picture is exact to half a device pixel at any zoom.
// Of patches that overlap, each shows the part that is nearest to its centre.

const SMALLEST_OUTLINE_PX = 5;

export class Overlay {
  constructor(viewer, colours) {
    this.viewer = viewer;
    this.colours = colours;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "scores";
    viewer.canvas.append(this.canvas);
    this.visible = true;
    this.clear();
    for (const event of ["update-viewport", "open", "resize"]) viewer.addHandler(event, () => this.draw());
  }

  clear() {
    this.corners = new Int32Array(0);
    this.scores = new Float32Array(0);
    this.bins = new Uint8Array(0);
    this.order = new Uint32Array(0);
    this.cells = new Map();
  }

  // corners: x, y of each patch; slide: patch_px0, step_px0, width_px0, height_px0, has_slide
  setPatches(corners, slide) {
    this.clear();
    this.slide = slide;
    this.corners = corners;
    this.cell = Math.min(slide.patch_px0, slide.step_px0);
    this.margin = (slide.patch_px0 - this.cell) / 2;
    if (!corners.length) return;
    this.origin = [corners[0] + this.margin, corners[1] + this.margin];
    for (let patch = 0; patch < corners.length / 2; patch++) {
      this.cells.set(this.key(corners[2 * patch] + this.margin, corners[2 * patch + 1] + this.margin), patch);
    }
  }

  setScores(scores, [low, high]) {
    this.scores = scores;
    this.bins = Uint8Array.from(scores, (value) => Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low)))));
    this.order = Uint32Array.from(scores.keys()).filter((patch) => !Number.isNaN(scores[patch]));
    this.order.sort((a, b) => this.bins[a] - this.bins[b]);
    this.draw();
  }

  key(x, y) {
    const column = Math.floor((x - this.origin[0]) / this.slide.step_px0);
    const row = Math.floor((y - this.origin[1]) / this.slide.step_px0);
    return `${column},${row}`;
  }

  // The patch at a level-0 pixel; -1 without one.
  patchAt(x, y) {
    if (!this.corners.length) return -1;
    const patch = this.cells.get(this.key(x, y)) ?? -1;
    if (patch < 0) return -1;
    const right = this.corners[2 * patch] + this.margin + this.cell;
    const lower = this.corners[2 * patch + 1] + this.margin + this.cell;
    return x < right && y < lower ? patch : -1;
  }

  // Level-0 pixels to CSS pixels of the viewer: [scale, left, top].
  toScreen() {
    const image = this.viewer.world.getItemAt(0);
    if (!image || !this.slide) return null;
    const start = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const end = image.imageToViewerElementCoordinates(new OpenSeadragon.Point(this.slide.width_px0, 0));
    return [(end.x - start.x) / this.slide.width_px0, start.x, start.y];
  }

  patchBox(patch) {
    const place = this.toScreen();
    if (!place || patch < 0) return null;
    const [scale, left, top] = place;
    const edge = this.slide.patch_px0 * scale;
    return [left + this.corners[2 * patch] * scale, top + this.corners[2 * patch + 1] * scale, edge, edge];
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * ratio);
    const height = Math.round(this.canvas.clientHeight * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const place = this.toScreen();
    if (!place || !this.corners.length) return;
    const [scale, left, top] = place.map((value) => value * ratio);
    const edge = this.cell * scale;
    if (!this.slide.has_slide && edge > SMALLEST_OUTLINE_PX) this.outline(context, scale, left, top, edge, width, height);
    if (!this.visible) return;
    let bin = -1;
    for (const patch of this.order) {
      const x = left + (this.corners[2 * patch] + this.margin) * scale;
      const y = top + (this.corners[2 * patch + 1] + this.margin) * scale;
      if (x > width || y > height || x + edge < 0 || y + edge < 0) continue;
      if (this.bins[patch] !== bin) context.fillStyle = this.colours[(bin = this.bins[patch])];
      const startX = Math.round(x);
      const startY = Math.round(y);
      context.fillRect(startX, startY, Math.max(1, Math.round(x + edge) - startX), Math.max(1, Math.round(y + edge) - startY));
    }
  }

  outline(context, scale, left, top, edge, width, height) {
    context.strokeStyle = "#6e7781";
    for (let patch = 0; patch < this.corners.length / 2; patch++) {
      const x = left + (this.corners[2 * patch] + this.margin) * scale;
      const y = top + (this.corners[2 * patch + 1] + this.margin) * scale;
      if (x <= width && y <= height && x + edge >= 0 && y + edge >= 0) context.strokeRect(x, y, edge, edge);
    }
  }
}
