// What joins xterm.js to a connection, in a browser, at a gateway that the page
// plays itself: everything here can be said to happen in one order only.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { serveFixture } from "./fixture.mjs";
import { openTab, paste, screen, sees, shareBrowser, skip, until } from "./harness.mjs";

const openBrowser = shareBrowser();
const ORIGIN = "http://127.0.0.1:1"; // nobody is asked: the fixture is all there is

/**
 * @param {import("node:test").TestContext} t
 * @param {string} script
 */
async function open(t, script) {
  const tab = await openTab(t, await openBrowser(), ORIGIN);
  const page = await serveFixture(tab, fileURLToPath(new URL(script, import.meta.url)), ORIGIN);
  await tab.goto(page.href);
  return tab;
}

/** @param {string} text */
const copies = (text) => `\x1b]52;c;${Buffer.from(text).toString("base64")}\x07`;

test("a paste holds no control characters, in brackets and without", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  await tab.evaluate(() => window.rig.open());
  const text = "one\x1b[201~\r\nrm\x03\x7f\x9b201~\ttwo ö\n";
  const clean = "one[201~\rrm201~\ttwo ö\r";
  await paste(tab, text);
  assert.equal(await tab.evaluate(() => window.rig.sent()), clean);
  await tab.evaluate(async () => {
    window.rig.print("\x1b[?2004h");
    await window.rig.parsed();
  });
  await paste(tab, text);
  assert.equal(
    await tab.evaluate(() => window.rig.sent()),
    `${clean}\x1b[200~${clean}\x1b[201~`,
    "once, and in brackets",
  );
});

// What xterm.js answers: a new version of it may write answers in another form.
const QUESTIONS = {
  status: "\x1b[5n",
  "cursor position": "\x1b[6n",
  "cursor position, DEC's": "\x1b[?6n",
  "primary attributes": "\x1b[c",
  "secondary attributes": "\x1b[>c",
  mode: "\x1b[?2004$p",
  "mode, ANSI": "\x1b[4$p",
  "a mode that is not known": "\x1b[?31337$p",
  "text attributes": "\x1bP$qm\x1b\\",
  margins: "\x1bP$qr\x1b\\",
  "cursor's style": "\x1bP$q q\x1b\\",
  "a setting that is not known": "\x1bP$qx\x1b\\",
  foreground: "\x1b]10;?\x07",
  background: "\x1b]11;?\x1b\\",
  "cursor's colour": "\x1b]12;?\x07",
  "a colour": "\x1b]4;1;?\x07",
  clipboard: "\x1b]52;c;?\x07",
  "focus, when it is asked for": "\x1b[?1004h",
};

test("what xterm.js answers by itself is nobody's typing", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  await tab.evaluate(() => window.rig.open());
  for (const [name, question] of Object.entries(QUESTIONS)) {
    const [answer, isAnswer] = await tab.evaluate(async (asked) => {
      const before = window.rig.sent().length;
      window.rig.print(asked);
      await window.rig.parsed();
      if (asked.endsWith("1004h")) {
        window.rig.terminal.blur();
        window.rig.terminal.focus();
      }
      const answered = window.rig.sent().slice(before);
      return /** @type {const} */ ([answered, window.rig.isAnswer(answered)]);
    }, question);
    assert.ok(answer.length > 0, `${name}: no answer`);
    assert.ok(isAnswer, `${name}: ${JSON.stringify(answer)} is taken for typing`);
  }
});

test("output goes on while a question is open, which is the only one", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  await tab.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await tab.evaluate(() => window.rig.open());
  const print = (/** @type {string} */ text) =>
    tab.evaluate((printed) => window.rig.print(printed), text);
  const asked = () => tab.evaluate(() => window.rig.asked);
  const answer = (/** @type {boolean} */ allowed) =>
    tab.evaluate((said) => window.rig.answer(said), allowed);
  const clipboard = () => tab.evaluate(() => navigator.clipboard.readText());
  const first = `${copies("first")}${copies("second")}goes on`;

  await print(first);
  await sees(tab, /^goes on$/m);
  await until(
    () => tab.evaluate(() => String(window.rig.acked())),
    new RegExp(`^${first.length}$`),
  );
  assert.deepEqual(await asked(), ["first"]);
  await answer(true);
  await until(clipboard, /^first$/);

  // An answer that fails is a no, and the next question is asked again.
  await print(`${copies("third")}\r\nthird`);
  await sees(tab, /^third$/m);
  await answer(false);
  await print(`${copies("fourth")}\r\nfourth`);
  await sees(tab, /^fourth$/m);
  assert.deepEqual(await asked(), ["first", "third", "fourth"]);
  assert.equal(await clipboard(), "first");
});

test("nobody is asked to copy what is nothing", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  await tab.context().grantPermissions(["clipboard-write"]);
  await tab.evaluate(() => window.rig.open());
  const commands = [
    "52;c;no base64!",
    "52;c;",
    "52",
    "52;p;?",
    "52;rm it;?",
    `52;${"c".repeat(13)};?`,
  ];
  const nothing = commands.map((command) => `\x1b]${command}\x07`).join("");
  await tab.evaluate(
    async (text) => {
      window.rig.print(text);
      await window.rig.parsed();
    },
    `${nothing}${copies("größe 漢字 😀")}`,
  );
  assert.deepEqual(await tab.evaluate(() => window.rig.asked), ["größe 漢字 😀"]);
  assert.equal(await tab.evaluate(() => window.rig.sent()), "\x1b]52;p;\x07", "nothing to read");
});

test("a program copies 1 MiB of base64 at most", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  await tab.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  const print = (/** @type {number} */ length) =>
    tab.evaluate(async (encoded) => {
      const { rig } = window;
      // base64 beyond the bound is not decoded
      let decoded = 0;
      const { atob } = window;
      window.atob = (text) => {
        decoded = Math.max(decoded, text.length);
        return atob(text);
      };
      rig.print(`\x1b]52;c;${"QUJD".repeat(encoded / 4)}\x07goes on`);
      await rig.parsed();
      window.atob = atob;
      return { decoded, refused: rig.refused, asked: rig.asked.map((text) => text.length) };
    }, length);
  await tab.evaluate(() => window.rig.open());
  const most = 1 << 20;
  assert.deepEqual(await print(most + 4), { decoded: 0, refused: 1, asked: [] });
  assert.deepEqual(await print(4_000_000), { decoded: 0, refused: 2, asked: [] });
  assert.deepEqual(await print(most), {
    decoded: most,
    refused: 2,
    asked: [(most / 4) * 3],
  });
  await tab.evaluate(() => window.rig.answer(true));
  const copied = () => tab.evaluate(async () => (await navigator.clipboard.readText()).length);
  await until(async () => String(await copied()), new RegExp(`^${(most / 4) * 3}$`));
});

test(
  "a link that a program marks opens in a new tab, and tells where it leads",
  { skip },
  async (t) => {
    const tab = await open(t, "attach.ts");
    await tab.evaluate(async () => {
      const { rig } = window;
      window.open = (...given) => {
        rig.asked.push(given.join(" "));
        return null;
      };
      await rig.open();
      rig.print("\x1b]8;;https://example.com/a\x1b\\their text\x1b]8;;\x1b\\");
      await rig.parsed();
    });
    await sees(tab, /^their text$/m);
    const title = () => tab.evaluate(() => window.rig.terminal.element?.title ?? "");
    await tab.locator(".xterm-screen").hover({ position: { x: 20, y: 8 } });
    await until(title, /^https:\/\/example\.com\/a$/);
    await tab.locator(".xterm-screen").click({ position: { x: 20, y: 8 } });
    const opened = async () => (await tab.evaluate(() => window.rig.asked)).join();
    await until(opened, /^https:\/\/example\.com\/a _blank noopener,noreferrer$/);
    await tab.locator(".xterm-screen").hover({ position: { x: 20, y: 200 } });
    await until(title, /^$/);

    const kept = await tab.evaluate(() => {
      window.rig.attached.dispose();
      return window.rig.terminal.options.linkHandler;
    });
    assert.equal(kept, null);
  },
);

test(
  "a line half typed when its shell went away does not run in the next one",
  { skip },
  async (t) => {
    const tab = await open(t, "attach.ts");
    const sent = await tab.evaluate(async () => {
      const { rig } = window;
      const sent = () => rig.sockets.map((socket) => socket.frames.map(String).join(" "));
      const socket = await rig.open();
      rig.random = 0;
      rig.type("a", 10_000);
      socket.closeFrame(1012, "draining");
      rig.type("b", 10_900); // nothing is open
      await rig.accept();
      rig.type("c", 11_800);
      rig.print("\x1b[5n"); // a program asks, and is answered
      await rig.parsed();
      rig.type("\r", 12_700);
      rig.type("d", 13_700); // after a pause
      rig.type("e", 13_800);
      return sent();
    });
    const code = (/** @type {string} */ text) => [...text].map((c) => c.charCodeAt(0)).join();
    assert.deepEqual(sent, [code("a"), [code("\x1b[0n"), code("d"), code("e")].join(" ")]);

    // A session that somebody asked for after an end takes keys at once; so does one that was let rest.
    const more = await tab.evaluate(async () => {
      const { rig } = window;
      const last = () => rig.sockets.at(-1)?.frames.map(String).join(" ");
      rig.sockets.at(-1)?.closeFrame(4423, "revoked");
      await rig.open();
      rig.type("f", 13_900);
      const asked = last();
      rig.sockets.at(-1)?.closeFrame(1012, "draining");
      await rig.accept();
      performance.now = () => 14_900;
      rig.terminal.input("g"); // a key on the screen, which presses none
      return [asked, last()];
    });
    assert.deepEqual(more, [code("f"), code("g")]);
  },
);

test("a terminal that goes away takes no part of the window along", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  const acked = () => tab.evaluate(() => String(window.rig.acked()));
  await tab.evaluate(async () => {
    const { rig } = window;
    await rig.open();
    rig.print("x".repeat(100_000));
    rig.remove(); // before any of it is parsed
  });
  await until(acked, /^100000$/);
  await tab.evaluate(() => {
    window.rig.print("nobody looks");
    window.rig.show();
    window.rig.print("here");
  });
  await sees(tab, /^here$/m);
  await until(acked, /^100016$/);
});

// In a hidden page it may take a minute until a timer is called.
test("output is parsed and acknowledged without a timer", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  const total = await tab.evaluate(async () => {
    const { rig } = window;
    await rig.open();
    Object.assign(window, { setTimeout: () => 0 });
    const text = "the quick brown fox 0123456789\r\n".repeat(60_000);
    // Many slices of plain text, and of a sequence between which parsing yields.
    for (const output of [text, "\x1bc".repeat(6_000), text]) {
      rig.feed(new TextEncoder().encode(output), 32_768);
    }
    return 2 * text.length + 12_000;
  });
  // An ack of less than 8 KiB may wait.
  const isDone = () => tab.evaluate((all) => String(window.rig.acked() > all - 8192), total);
  await until(isDone, /^true$/);
});

test("a program's modes are undone before the next session's output", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  const state = await tab.evaluate(async () => {
    const { rig } = window;
    const socket = await rig.open();
    rig.print(`first\x1b[?1049h${"flood\r\n".repeat(20_000)}`);
    socket.closeFrame(1012, "draining");
    await rig.open(); // faster than the flood is drawn
    rig.print("\x1b[?2004h\x1b[?1hsecond");
    await rig.parsed();
    const { bracketedPasteMode, applicationCursorKeysMode } = rig.terminal.modes;
    const { type } = rig.terminal.buffer.active;
    return { bracketedPasteMode, applicationCursorKeysMode, type };
  });
  assert.deepEqual(state, {
    bracketedPasteMode: true,
    applicationCursorKeysMode: true,
    type: "normal",
  });
  await until(() => screen(tab), /^first\n── new session ──\n\nsecond\n*$/);
});

test("an end on the normal screen leaves the cursor where it is", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  await tab.evaluate(async () => {
    const socket = await window.rig.open();
    window.rig.print("\x1b7one\r\ntwo");
    socket.closeFrame(1012, "draining");
    await window.rig.open();
    window.rig.print("three");
  });
  await until(() => screen(tab), /^one\ntwo\n── new session ──\n\nthree\n*$/);
});

test("Ctrl+Shift+C copies where there is no Clipboard API", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  await tab.evaluate(async () => {
    Object.defineProperty(Navigator.prototype, "clipboard", { value: undefined });
    await window.rig.open();
    window.rig.print("copied by key");
    await window.rig.parsed();
    window.rig.terminal.select(0, 0, 13);
  });
  await tab.keyboard.press("Control+Shift+C");
  const page = await tab.context().newPage();
  await page.context().grantPermissions(["clipboard-read"]);
  await page.route("**/*", (route) => route.fulfill({ contentType: "text/html", body: "" }));
  await page.goto(ORIGIN);
  await until(() => page.evaluate(() => navigator.clipboard.readText()), /^copied by key$/);
  assert.equal(await tab.evaluate(() => window.rig.sent()), "", "the shell got nothing");

  // Nobody is asked for what no answer could do.
  await tab.evaluate((text) => window.rig.print(text), `${copies("by a program")}\r\nafter`);
  await sees(tab, /^after$/m);
  assert.deepEqual(await tab.evaluate(() => window.rig.asked), []);
});

test("a network that is back ends the waiting for it, and no other", { skip }, async (t) => {
  const tab = await open(t, "attach.ts");
  const after = (/** @type {number} */ close, /** @type {string} */ reason) =>
    tab.evaluate(async ([code, why]) => {
      const socket = await window.rig.open();
      socket.closeFrame(code, why);
      window.dispatchEvent(new Event("online"));
      return window.rig.connection.status.state;
    }, /** @type {const} */ ([close, reason]));
  assert.equal(await after(4429, "too_many_sessions"), "waiting");
  assert.equal(await after(1006, ""), "connecting");
});

test("React: another connection's terminal has the props of then", { skip }, async (t) => {
  const tab = await open(t, "react.tsx");
  const made = () => tab.evaluate(() => window.made.join(", "));
  const show = (
    /** @type {string} */ url,
    /** @type {number} */ fontSize,
    /** @type {string} */ name,
  ) => tab.evaluate((props) => window.show(props), { url, fontSize, name });
  await show("/workspaces/a/terminal", 12, "first");
  await until(made, /^first 12$/);
  assert.equal(
    await tab.evaluate(() => window.view.current?.querySelectorAll(".xterm").length),
    1,
    "a ref has the element, and the terminal is in it",
  );
  await show("/workspaces/a/terminal", 13, "unused");
  await show("/workspaces/b/terminal", 20, "second");
  await until(made, /^first 12, second 20$/);
});
