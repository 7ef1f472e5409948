// Keeps the lock monitor live: puts the part of the page that changes in the place of the old one.
// Without it, or where scripts are off, the page reloads itself (<noscript> in its head).
(() => {
  "use strict";

  const live = document.getElementById("dblock-live");
  const pulse = document.getElementById("dblock-pulse");
  const status = document.getElementById("dblock-status");
  const period = 1000 * Number(live.dataset.refresh);
  const patience = 30000;
  let timer = null;
  let asking = null;

  const show = (state) => {
    if (state === "live" && pulse.dataset.state === "lost") {
      say(document.getElementById("dblock-counts").dataset.summary);
    }
    pulse.dataset.state = state;
    if (pulse.textContent !== pulse.dataset[state]) {
      pulse.textContent = pulse.dataset[state];
    }
    if (state === "lost" || state === "left") {
      say(pulse.dataset[state]);
    }
  };

  // Spoken by a screen reader, so only what is new; never the ages, which always are.
  const say = (text) => {
    if (status.textContent !== text) {
      status.textContent = text;
    }
  };

  const isInUse = () => {
    const selection = window.getSelection();
    return !selection.isCollapsed && live.contains(selection.anchorNode);
  };

  const replace = (html) => {
    const focused = live.contains(document.activeElement) ? document.activeElement : null;
    const open = [...live.querySelectorAll("details[open]")].map((each) => each.id);
    const sheet = document.getElementById("dblock-sheet");
    const scrolled = sheet && [sheet.scrollLeft, sheet.scrollTop];
    const before = document.getElementById("dblock-counts").dataset.summary;

    live.replaceChildren(...new DOMParser().parseFromString(html, "text/html").body.childNodes);

    for (const id of open) {
      document.getElementById(id)?.setAttribute("open", "");
    }
    if (scrolled) {
      document.getElementById("dblock-sheet")?.scrollTo(...scrolled);
    }
    if (focused && focused !== live) {
      const holder = focused.id ? null : focused.closest("[id]");
      const same = document.getElementById(focused.id || holder?.id);
      // A summary has no id of its own; what has gone leaves the focus on the whole, not nowhere.
      const heir = holder ? same?.querySelector(focused.tagName) : same;
      (heir || live).focus({ preventScroll: true });
    }
    const now = document.getElementById("dblock-counts").dataset.summary;
    if (now !== before) {
      say(now);
    }
  };

  // The last minutes, kept in this tab alone: [milliseconds, held, waiting], the newest last.
  const history = document.getElementById("dblock-history");
  const kept = `dblock-history:${history.dataset.database}`;
  const longest = 15 * 60 * 1000;
  let looks = [];
  try {
    looks = JSON.parse(window.sessionStorage.getItem(kept)) || [];
  } catch {
    // no storage, or somebody else's value: begin with nothing
  }

  const note = () => {
    const { held, waiting } = document.getElementById("dblock-counts").dataset;
    const now = Date.now();
    looks = looks.filter(([at]) => now - longest < at && at <= now);
    looks.push([now, Number(held), Number(waiting)]);
    try {
      window.sessionStorage.setItem(kept, JSON.stringify(looks));
    } catch {
      // it is kept until the page is left
    }
    draw();
  };

  const draw = () => {
    // From the first look on, so that nothing moves under the reader later.
    const [first] = looks[0];
    const lasting = looks[looks.length - 1][0] - first || 1;
    const most = (column) => Math.max(...looks.map((look) => look[column]));
    for (const [name, column] of [["held", 1], ["waiting", 2]]) {
      const scale = 24 / Math.max(most(1), most(2), 1);
      // a single look is a level line
      const shown = looks.length < 2 ? [looks[0], [first + 1, ...looks[0].slice(1)]] : looks;
      const points = shown.map(
        (look) =>
          `${((240 * (look[0] - first)) / lasting).toFixed(1)},${(26 - scale * look[column]).toFixed(1)}`,
      );
      history.querySelector(`polyline.dblock-history-${name}`).setAttribute("points", points.join(" "));
    }
    const seconds = Math.round(lasting / 1000);
    const span =
      seconds < 100
        ? history.dataset.seconds.replace("%n", seconds)
        : history.dataset.minutes.replace("%n", Math.round(seconds / 60));
    const text = history.dataset.label
      .replace("%s", span)
      .replace("%h", most(1))
      .replace("%w", most(2));
    document.getElementById("dblock-history-title").textContent = text;
    document.getElementById("dblock-history-text").textContent = seconds < 1 ? "" : text;
    history.hidden = false;
  };

  const ask = async () => {
    const address = new URL(live.dataset.address, window.location.href);
    address.searchParams.set("fragment", "1");
    asking = new AbortController();
    const tooLong = setTimeout(() => asking.abort(), patience);
    try {
      const answer = await fetch(address, { signal: asking.signal, credentials: "same-origin" });
      if (answer.redirected || answer.status === 403) {
        show("left");
        return false;
      }
      if (!answer.ok) {
        throw new Error(answer.status);
      }
      const html = await answer.text();
      if (!html.includes('id="dblock-counts"')) {
        throw new Error("somebody else's page"); // a proxy's, with a status of its own
      }
      if (!isInUse()) {
        replace(html);
        note();
      }
      show("live");
    } catch {
      show("lost");
    } finally {
      clearTimeout(tooLong);
    }
    return true;
  };

  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(turn, period);
  };

  const turn = async () => {
    if (document.hidden) {
      show("paused");
    } else if (await ask()) {
      wait();
    }
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && pulse.dataset.state === "paused") {
      turn();
    }
  });
  show("live");
  note();
  wait();
})();
