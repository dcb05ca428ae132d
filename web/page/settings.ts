/** What a person chose for this page, kept in the browser. */
import { element } from "./dom.js";

const KEPT = "termgw-demo-settings";

export type ThemeChoice = "system" | "light" | "dark";

interface Settings {
  theme: ThemeChoice;
  fontSize: number;
  screenReader: boolean;
  keys: boolean;
}

/** A finger, not a mouse: such a machine has no Esc. */
const touch = matchMedia("(pointer: coarse)").matches;

export const settings: Settings = {
  theme: "system",
  fontSize: touch ? 13 : 14,
  screenReader: false,
  keys: touch,
  ...kept(),
};

function kept(): Partial<Settings> {
  try {
    const found: unknown = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    return typeof found === "object" && found !== null ? found : {};
  } catch {
    return {}; // written by another version
  }
}

/** Shows the settings in their popover, and calls `changed` at once and at each change. */
export function setUpSettings(changed: () => void): void {
  const fontSize = element<HTMLInputElement>("font-size");
  const screenReader = element<HTMLInputElement>("screen-reader");
  const keys = element<HTMLInputElement>("show-keys");
  const themes = document.querySelectorAll<HTMLInputElement>("input[name=theme]");
  fontSize.valueAsNumber = settings.fontSize;
  screenReader.checked = settings.screenReader;
  keys.checked = settings.keys;
  for (const theme of themes) theme.checked = theme.value === settings.theme;

  const apply = () => {
    document.documentElement.dataset.theme = settings.theme;
    element("keys").hidden = !settings.keys;
    changed();
  };
  element("settings").addEventListener("input", () => {
    settings.screenReader = screenReader.checked;
    settings.keys = keys.checked;
    if (fontSize.validity.valid && fontSize.value) settings.fontSize = fontSize.valueAsNumber;
    for (const theme of themes) if (theme.checked) settings.theme = theme.value as ThemeChoice;
    localStorage.setItem(KEPT, JSON.stringify(settings));
    apply();
  });
  apply();
}
