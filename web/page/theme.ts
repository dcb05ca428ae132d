/** The terminal's colours, light and dark; the page's own are in style.css. */
import type { ITheme } from "@xterm/xterm";
import { settings } from "./settings.js";

const dark: ITheme = {
  background: "#12161c",
  foreground: "#d8dee6",
  cursor: "#3ecf9a",
  cursorAccent: "#12161c",
  selectionBackground: "#2d4a5a",
  black: "#2a313b",
  red: "#ff7b72",
  green: "#57c785",
  yellow: "#e0b050",
  blue: "#6cb0ff",
  magenta: "#c89bff",
  cyan: "#4fc7c9",
  white: "#c5ccd6",
  brightBlack: "#748092",
  brightRed: "#ffa198",
  brightGreen: "#7ee2a8",
  brightYellow: "#f2cc7a",
  brightBlue: "#9ccaff",
  brightMagenta: "#dcbfff",
  brightCyan: "#85dede",
  brightWhite: "#f4f6f8",
  scrollbarSliderBackground: "#8b96a533",
  scrollbarSliderHoverBackground: "#8b96a566",
  scrollbarSliderActiveBackground: "#8b96a588",
};

const light: ITheme = {
  background: "#fbfbf9",
  foreground: "#22272e",
  cursor: "#08785a",
  cursorAccent: "#fbfbf9",
  selectionBackground: "#cfe3dc",
  black: "#22272e",
  red: "#b3261e",
  green: "#1a7041",
  yellow: "#855800",
  blue: "#0a58b8",
  magenta: "#7d3fb5",
  cyan: "#0b6c75",
  white: "#6b7178",
  brightBlack: "#5c646d",
  brightRed: "#cf3a30",
  brightGreen: "#1f8450",
  brightYellow: "#9a6700",
  brightBlue: "#1c6dd0",
  brightMagenta: "#9250cc",
  brightCyan: "#0f7f8a",
  brightWhite: "#3a4149",
  scrollbarSliderBackground: "#656d7633",
  scrollbarSliderHoverBackground: "#656d7666",
  scrollbarSliderActiveBackground: "#656d7688",
};

const system = window.matchMedia("(prefers-color-scheme: dark)");

export function currentTheme(): ITheme {
  const isDark = settings.theme === "system" ? system.matches : settings.theme === "dark";
  return isDark ? dark : light;
}

export function onSystemThemeChange(listener: () => void): void {
  system.addEventListener("change", listener);
}
