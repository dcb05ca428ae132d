import assert from "node:assert/strict";
import { test } from "node:test";
import { faintTexts } from "./contrast.mjs";
import {
  goOn,
  lives,
  openTab,
  paste,
  screen,
  sees,
  shows,
  skip,
  shareBrowser,
  startDemo,
  type,
  until,
} from "./harness.mjs";
import { startScript } from "./script.mjs";

const openBrowser = shareBrowser();

test(
  "the page opens a shell: typing, resize, reload, exit, another session",
  {
    skip,
  },
  async (t) => {
    const demo = await startDemo(t);
    const browser = await openBrowser();
    const tab = await openTab(t, browser, demo.page);
    await tab.goto(demo.page);

    await shows(tab, "#state", /^Connected$/);
    await shows(tab, "#target", /^local$/);
    await shows(tab, "#round-trip", / ms$/);
    assert.doesNotMatch(tab.url(), /key/, "the one-time secret left the address bar");

    await type(tab, "echo $((6*7))");
    await sees(tab, /^42$/m);

    await t.test("the shell follows the window's size", async () => {
      const before = await tab.locator("#size").textContent();
      await tab.setViewportSize({ width: 760, height: 420 });
      const [, cols, rows] = await shows(tab, "#size", new RegExp(`^(?!${before}$)(\\d+)×(\\d+)$`));
      await type(tab, 'echo "now:$(stty size)"');
      await sees(tab, new RegExp(`^now:${rows} ${cols}$`, "m"));
    });

    await t.test("characters of every width arrive whole", async () => {
      await type(tab, "printf '%s\\n' 'größe 漢字 😀'");
      await sees(tab, /^größe 漢字 😀$/m);
    });

    await t.test("a paste arrives whole, over many frames", async () => {
      const lines = `${"0123456789abcdef".repeat(64)}\n`.repeat(200);
      await type(tab, `stty -echo; echo go-$((4+5)); head -c ${lines.length} | wc -c; stty echo`);
      await sees(tab, /^go-9$/m);
      await paste(tab, lines);
      await sees(tab, new RegExp(`^${lines.length}$`, "m"));
    });

    await t.test("Ctrl-C ends a flood", async () => {
      await type(tab, "yes flood");
      await sees(tab, /flood\nflood\nflood/);
      await tab.keyboard.press("Control+c");
      await type(tab, "echo after-$((1+1))");
      await sees(tab, /^after-2$/m);
    });

    await t.test("a reload comes back in without the link", async () => {
      await tab.reload();
      await shows(tab, "#state", /^Connected$/);
      await type(tab, "echo back-$((2+3))");
      await sees(tab, /^back-5$/m);
    });

    await t.test("exit says why, and Enter opens another session", async () => {
      await type(tab, "seq 100; exit 3");
      await shows(tab, "#panel", /The shell ended with status 3/);
      await shows(tab, "#again", /^New session$/);
      await sees(tab, /^100$/m); // the last of the output stays on the screen
      await goOn(tab);
      await shows(tab, "#state", /^Connected$/);
      await type(tab, "echo new-$((3+4))");
      await sees(tab, /^new-7$/m);
    });

    await t.test("what a program left on does not reach the next session", async () => {
      const mouse = async () => String(await tab.locator(".xterm.enable-mouse-events").count());
      await type(tab, String.raw`printf '\e[?1049h\e[?1003hALTERNATE'; read; exit 4`);
      await sees(tab, /^ALTERNATE/m);
      await until(mouse, /^1$/);
      await tab.keyboard.press("Enter");
      await shows(tab, "#panel", /status 4/);
      await sees(tab, /^new-7$/m);
      await until(mouse, /^0$/);
      assert.doesNotMatch(await screen(tab), /^ALTERNATE/m);
      await goOn(tab);
      await shows(tab, "#state", /^Connected$/);
    });

    await t.test("the keyboard leaves the terminal and comes back", async () => {
      await tab.keyboard.press("Control+Shift+E");
      const focused = () => tab.evaluate(() => document.activeElement?.role ?? "");
      assert.equal(await focused(), "tab");
      await tab.keyboard.press("Enter");
      await tab.keyboard.type("echo keys-$((4+4))");
      await tab.keyboard.press("Enter");
      await sees(tab, /^keys-8$/m);
    });
  },
);

test("tabs: by keyboard alone, each with a shell of its own", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await openBrowser();
  const tab = await openTab(t, browser, demo.page);
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  const tabs = async () => (await tab.locator(".tab .name").allTextContents()).join(", ");
  const press = async (/** @type {string[]} */ ...keys) => {
    for (const key of keys) await tab.keyboard.press(key);
  };
  const line = async (/** @type {string} */ text) => {
    await tab.keyboard.type(text);
    await press("Enter");
  };
  await line("where=first");

  await t.test("the picker opens another terminal", async () => {
    await press("Control+Shift+O");
    await tab.keyboard.type("no such workspace");
    await shows(tab, "#picker-list", /^No workspace by that name$/);
    await shows(tab, "#picker .hint", /Esc closes$/);
    await press("Escape", "Control+Shift+O");
    await tab.keyboard.type("mach");
    await shows(tab, "#picker-list", /^This machine/);
    await press("Enter");
    await until(tabs, /^This machine 1, This machine 2$/);
    await shows(tab, "#state", /^Connected$/);
    await line('echo "here:$where"');
    await sees(tab, /^here:$/m);
  });

  await t.test("Ctrl+Shift with an arrow goes to the one beside", async () => {
    await press("Control+Shift+ArrowLeft");
    await line('echo "here:$where"');
    await sees(tab, /^here:first$/m);
  });

  await t.test("output in a tab that nobody looks at is marked", async () => {
    await line("sleep 0.3; echo late");
    await press("Control+Shift+ArrowRight");
    await tab.locator(".tab[data-unseen]").waitFor();
    await press("Control+Shift+ArrowLeft");
    await sees(tab, /^late$/m);
    assert.equal(await tab.locator(".tab[data-unseen]").count(), 0);
  });

  await t.test("so is a tab in which the bell rang", async () => {
    await line("sleep 0.3; printf '\\a'");
    await press("Control+Shift+ArrowRight");
    await tab.locator(".tab[data-bell]").waitFor();
    await until(() => tab.title(), /^\(!\) /);
    await press("Control+Shift+ArrowLeft");
    await until(() => tab.title(), /^(?!\()/);
    assert.equal(await tab.locator(".tab[data-bell]").count(), 0);
  });

  await t.test("find marks what was printed, and steps through it", async () => {
    await line("clear; for i in 1 2 3; do echo need''le $i; done");
    await sees(tab, /^needle 3$/m);
    await press("Control+Shift+F");
    await tab.keyboard.type("needle");
    await shows(tab, "#find-count", /^3 of 3$/);
    await press("Enter");
    await shows(tab, "#find-count", /^2 of 3$/);
    await press("Shift+Enter");
    await shows(tab, "#find-count", /^3 of 3$/);
    await tab.keyboard.type("s");
    await shows(tab, "#find-count", /^None$/);
    await press("Escape");
    await line("echo after-$((1+2))");
    await sees(tab, /^after-3$/m);
  });

  await t.test("a read-only terminal drops what is typed", async () => {
    await press("Control+Shift+O", "Tab");
    await tab.keyboard.press("Space");
    await tab.locator("#picker-filter").focus();
    await press("Enter");
    await until(tabs, /3$/);
    await shows(tab, "#mode", /^read-only$/);
    await line("echo typed");
    await press("Control+Shift+E", "Delete");
    await until(tabs, /^This machine 1, This machine 2$/);
  });

  await t.test("a reload opens the same tabs", async () => {
    await tab.reload();
    await until(tabs, /^This machine 1, This machine 2$/);
    await shows(tab, "#state", /^Connected$/);
  });

  await t.test("the last tab closed leaves a button that opens another", async () => {
    await press("Control+Shift+E", "Delete", "Delete");
    await until(tabs, /^$/);
    await shows(tab, "#welcome", /No terminal is open/);
    await press("Enter", "Enter");
    await until(tabs, /^This machine$/);
  });
});

test("settings: colours, size, screen reader, and they last", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await openBrowser();
  const tab = await openTab(t, browser, demo.page, { colorScheme: "dark" });
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  const ground = (/** @type {string} */ selector) =>
    tab.locator(selector).evaluate((found) => getComputedStyle(found).backgroundColor);
  const before = await tab.locator("#size").textContent();
  assert.equal(await ground("main"), "rgb(18, 22, 28)");

  await tab.locator("#settings-open").click();
  await tab.getByText("Light", { exact: true }).click();
  assert.equal(await ground("main"), "rgb(251, 251, 249)");
  assert.equal(await ground(".xterm-scrollable-element"), "rgb(251, 251, 249)");
  await tab.locator("#font-size").fill("20");
  await shows(tab, "#size", new RegExp(`^(?!${before}$)\\d+×\\d+$`));
  await tab.locator("#screen-reader").check();
  await tab.keyboard.press("Escape");
  await type(tab, "echo read-$((2+2))");
  await until(async () => (await tab.locator(".xterm-accessibility").innerText()) ?? "", /read-4/);

  await tab.reload();
  await shows(tab, "#state", /^Connected$/);
  assert.equal(await ground("main"), "rgb(251, 251, 249)");
  await tab.locator(".xterm-accessibility").waitFor({ state: "attached" });
});

for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
  test(`${colorScheme}: every text stands out, and where the keyboard is`, { skip }, async (t) => {
    const demo = await startDemo(t);
    const browser = await openBrowser();
    const tab = await openTab(t, browser, demo.page, { colorScheme, reducedMotion: "reduce" });
    await tab.goto(demo.page);
    await shows(tab, "#state", /^Connected$/);
    const press = async (/** @type {string[]} */ ...keys) => {
      for (const key of keys) await tab.keyboard.press(key);
    };
    const outline = () =>
      tab.evaluate(() => getComputedStyle(document.activeElement ?? document.body).outlineStyle);
    assert.deepEqual(await faintTexts(tab), []);

    await press("Control+Shift+O");
    await shows(tab, "#picker-list", /This machine/);
    assert.deepEqual(await faintTexts(tab), []);
    assert.equal(await outline(), "solid");
    await press("Escape", "Control+Shift+E");
    assert.equal(await outline(), "solid");

    // From the tabs by Tab alone: another terminal, find, settings.
    await press("Tab", "Tab", "Tab");
    assert.equal(await tab.evaluate(() => document.activeElement?.id), "settings-open");
    assert.equal(await outline(), "solid");
    await press("Enter");
    await tab.locator("#settings").waitFor();
    assert.deepEqual(await faintTexts(tab), []);
    await press("Escape");

    await type(tab, "exit 3");
    await shows(tab, "#again", /^New session$/);
    assert.deepEqual(await faintTexts(tab), []);
    await until(() => tab.evaluate(() => document.activeElement?.id ?? ""), /^again$/);
    assert.equal(await outline(), "solid");
    const moving = await tab.evaluate(() => document.getAnimations().length);
    assert.equal(moving, 0, "nothing moves for who asked for that");
  });
}

test("a phone has the keys that it lacks", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await openBrowser();
  const tab = await openTab(t, browser, demo.page, {
    viewport: { width: 390, height: 700 },
    isMobile: true,
    hasTouch: true,
  });
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  const width = await tab.evaluate(() => document.documentElement.scrollWidth);
  assert.equal(width, 390, "nothing is wider than the phone");
  const tap = (/** @type {string} */ key) =>
    tab.getByRole("button", { name: key, exact: true }).tap();

  await type(
    tab,
    "stty -echo -icanon -isig; echo go-$((1+1)); dd bs=1 count=16 2>&- | od -An -w8 -tx1",
  );
  await sees(tab, /^go-2$/m);
  await tap("Escape");
  await tap("Tab");
  await tap("Up");
  const control = "Control, for the next key";
  await tap(control);
  await tab.keyboard.type("c");
  await tab.keyboard.type("c");
  await tap("Pipe");
  await tap(control);
  await tap("Left");
  await tap(control);
  await tap("Slash");
  await tab.keyboard.type("z");
  await sees(tab, /^ 1b 09 1b 5b 41 03 63 7c\n 1b 5b 31 3b 35 44 1f 7a$/m);
});

test("a program may copy to the clipboard when somebody allows it", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await openBrowser();
  const tab = await openTab(t, browser, demo.page);
  await tab.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  const clipboard = () => tab.evaluate(() => navigator.clipboard.readText());
  const copy = (/** @type {string} */ text) =>
    type(tab, `printf '\\e]52;c;%s\\a' "$(printf '${text}' | base64)"`);

  await copy("refused");
  await shows(tab, "#panel", /wants to copy.*7 characters\. ?refused/);
  await tab.locator("#second").click();
  await until(async () => String(await tab.locator("#panel").isVisible()), /false/);
  assert.equal(await clipboard(), "");
  await copy("allowed");
  await shows(tab, "#panel", /allowed/);
  await tab.locator("#again").click();
  await until(clipboard, /^allowed$/);

  // What a paste would run is seen: line ends, and marks that turn text around.
  await copy("ls \\u202e# \\n  rm\\t-rf\\033");
  await shows(tab, "#panel", /16 characters with 1 line end/);
  assert.equal(
    await tab.locator("#panel-quote").textContent(),
    "ls \\u{202e}# \\n\n  rm\\t-rf\\u{1b}",
  );
  await tab.locator("#second").click();

  // Too much is refused, and told until somebody types.
  await type(
    tab,
    String.raw`printf '\e]52;c;'; head -c 1048580 /dev/zero | tr '\0' A; printf '\a'`,
  );
  await shows(tab, "#panel", /Not copied.*more than 768 KiB/);
  await type(tab, "");
  await until(async () => String(await tab.locator("#panel").isVisible()), /false/);

  // A question ends with its session: the button does what it says then.
  const end = async () => {
    await shows(tab, "#again", /^New session$/);
    await goOn(tab);
    await shows(tab, "#state", /^Connected$/);
    await until(async () => String(await tab.locator("#panel").isVisible()), /false/);
    assert.equal(await clipboard(), "allowed");
  };
  await copy("stale");
  await shows(tab, "#panel", /stale/);
  await type(tab, "exit");
  await end();
  await type(tab, `printf '\\e]52;c;%s\\a' "$(printf last | base64)"; exit`);
  await end();

  // What is on it no program gets.
  await type(
    tab,
    String.raw`stty -echo -icanon min 0 time 5; printf '\e]52;c;?\a'; od -c; stty sane`,
  );
  await sees(tab, /^0000000 033 +\] +5 +2 +; +c +; +\\a\n0000010$/m);
});

test("output of one terminal leaves the page's others alone", { skip }, async (t) => {
  const demo = await startDemo(t);
  const tab = await openTab(t, await openBrowser(), demo.page);
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  await tab.keyboard.press("Control+Shift+O");
  await tab.keyboard.type("mach");
  await shows(tab, "#picker-list", /^This machine/);
  await tab.keyboard.press("Enter");
  await until(async () => String(await tab.locator(".tab").count()), /^2$/);
  await shows(tab, "#state", /^Connected$/);
  const attacks = ["S", "T", "L", "M", "I", "Z", "b"].map(
    (final) => `x\\033[H\\033[2147483647${final}`,
  );
  const more = ["\\033]2;%999999s\\a", "\\033[999;999H\\033[1J", "\\033[?12h\\033[?12l"];
  await type(
    tab,
    `for i in 1 2 3; do printf '${[...attacks, ...more].join("")}'; done; printf '\\r\\nstill %s\\n' here`,
  );
  await tab.keyboard.press("Control+Shift+ArrowLeft");
  await type(tab, "printf 'other %s' answers");
  await sees(tab, /other answers/);
  await tab.keyboard.press("Control+Shift+ArrowRight");
  await sees(tab, /still here/);
  assert.ok((await tab.title()).length < 300, "a title has an end");
});

test("the page connects to nothing but its own origin", { skip }, async (t) => {
  const demo = await startDemo(t);
  const tab = await openTab(t, await openBrowser(), demo.page, {
    expected: /Content Security Policy/,
  });
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  const refused = await tab.evaluate(async () => {
    const violation = new Promise((resolve) => {
      document.addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI }) =>
        resolve(`${effectiveDirective} ${blockedURI}`),
      );
    });
    try {
      new WebSocket("ws://127.0.0.2:9/").close();
    } catch {
      // Browsers differ in whether this throws.
    }
    return violation;
  });
  assert.match(String(refused), /^connect-src ws:\/\/127\.0\.0\.2:9/);
});

test("the one-time link lets one tab in", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await openBrowser();
  const first = await openTab(t, browser, demo.page);
  await first.goto(demo.page);
  await shows(first, "#state", /^Connected$/);

  const second = await openTab(t, browser, demo.page, { expected: /status of 401/ });
  await second.goto(demo.page);
  await shows(second, "#gate", /This link was already used.*shows no newer one, start it again\./);
  assert.equal(await screen(second), "", "no terminal");

  const bare = await openTab(t, browser, demo.page);
  await bare.goto(new URL("/", demo.page).href);
  await shows(bare, "#gate", /Open the link that termgw demo printed/);
});

test("closing a tab of the page ends its shell at once", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await openBrowser();
  const tab = await openTab(t, browser, demo.page);
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  await type(tab, "echo pid:$$");
  const [, pid] = await sees(tab, /^pid:(\d+)$/m);
  assert.ok(lives(Number(pid)), "the shell lives while the tab is open");
  await tab.locator(".tab .close").click();
  await until(() => (lives(Number(pid)) ? "lives" : "gone"), /gone/);
});

test("leaving the page is asked about where something typed would be lost", { skip }, async (t) => {
  const site = await startScript(t, []);
  const browser = await openBrowser();
  const tab = await openTab(t, browser, site.url);
  await tab.goto(`${site.url}#key=first`);
  await shows(tab, "#state", /^Connected$/);
  /** @type {string[]} */
  const asked = [];
  let stay = true;
  tab.on("dialog", (dialog) => {
    asked.push(dialog.type());
    return stay ? dialog.dismiss() : dialog.accept();
  });
  await tab.locator(".xterm").click(); // a browser asks only who has done something there
  await tab.evaluate(() => location.reload());
  await shows(tab, "#state", /^Connected$/);
  assert.deepEqual(asked, []);

  await tab.locator(".xterm-helper-textarea").press("a");
  await until(site.typed, /^a$/);
  await tab.evaluate(() => location.reload());
  await until(() => String(asked), /^beforeunload$/);
  site.say({ type: "exit", code: 0 });
  site.close(1000);
  await shows(tab, "#again", /^New session$/);
  stay = false;
  await tab.evaluate(() => location.reload());
  await shows(tab, "#state", /^Connected$/);
  assert.deepEqual(asked, ["beforeunload"]);
});

test("a gateway that goes away is told, with what to do", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await openBrowser();
  const tab = await openTab(t, browser, demo.page, { expected: /ERR_CONNECTION_REFUSED/ });
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  demo.kill();
  await shows(tab, "#panel", /Your shell is waiting, [01]:\d\d left/);
  await shows(tab, "#panel", /termgw demo does not answer.*Trying to reach it/);
  await tab.locator("#second").click();
  await shows(tab, "#again", /^New session$/);
});
