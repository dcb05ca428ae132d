/**
 * The texts of a page that do not stand out from their ground as WCAG 2.2 asks (1.4.3: 4.5 to 1),
 * with their contrast; the terminal's own text is xterm.js's to care for.
 *
 * @param {import("playwright-core").Page} tab
 * @returns {Promise<string[]>}
 */
export function faintTexts(tab) {
  return tab.evaluate(() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    if (!context) throw new Error("no canvas");
    /** @param {string[]} colours painted one on the other */
    const luminance = (colours) => {
      for (const colour of colours) {
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
      }
      const [red, green, blue] = [...context.getImageData(0, 0, 1, 1).data].map((byte) => {
        const part = byte / 255;
        return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * (red ?? 0) + 0.7152 * (green ?? 0) + 0.0722 * (blue ?? 0);
    };
    const faint = [];
    for (const found of document.querySelectorAll("body *")) {
      const own = [...found.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE);
      const text = own
        .map((node) => node.textContent)
        .join("")
        .trim();
      if (!text || found.closest(".xterm")) continue;
      if (!found.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
      const grounds = ["white"];
      for (let under = found; under; under = /** @type {Element} */ (under.parentElement)) {
        grounds.splice(1, 0, getComputedStyle(under).backgroundColor);
      }
      const ground = luminance(grounds);
      const ink = luminance([...grounds, getComputedStyle(found).color]);
      const ratio = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
      if (ratio < 4.5) faint.push(`${text}: ${ratio.toFixed(2)}`);
    }
    return faint;
  });
}
