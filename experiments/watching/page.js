"use strict";
// The page as it is now, put in place of what it was: what is read or scrolled stays where it is.
const every = 1000 * Number(document.body.dataset.every);

async function refresh() {
  try {
    const answer = await fetch("/", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(page.querySelector("main"));
    document.title = page.title;
  } catch {
    document.getElementById("lost").hidden = false;
  }
  setTimeout(refresh, every);
}

setTimeout(refresh, every);
