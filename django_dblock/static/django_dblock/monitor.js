// Keeps the lock monitor live: puts the part of the page that changes in the place of the old one.
// Without it, or where it may not run, the page loads itself anew (<noscript> in its head).
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
  wait();
})();
