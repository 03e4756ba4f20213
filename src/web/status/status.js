"use strict";

// Keeps the page up to date. Without this script, reload it.

// Changes only what differs, so that focus and a screen reader's place stay.
function update(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.childNodes.length !== fresh.childNodes.length) {
    const focused = old.contains(document.activeElement) && document.activeElement.id;
    old.replaceWith(fresh);
    if (focused) document.getElementById(focused)?.focus();
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const children = [...fresh.childNodes];
  [...old.childNodes].forEach((child, index) => update(child, children[index]));
}

function latestChange() {
  const change = document.querySelector("#changes li");
  return change && { at: change.querySelector("time").dateTime, text: change.querySelector(".what").textContent };
}

function tell(isLive) {
  const live = document.getElementById("live");
  live.hidden = false;
  live.classList.toggle("lost", !isLive);
  live.textContent = isLive ? "Live" : "Not live: reload to see how it is now";
}

const events = new EventSource(document.body.dataset.events);
events.onopen = () => tell(true);
events.onerror = () => tell(false);
events.onmessage = ({ data }) => {
  const before = latestChange();
  const fresh = new DOMParser().parseFromString(data, "text/html").querySelector("main");
  update(document.querySelector("main"), fresh);
  const change = latestChange();
  if (change && (!before || before.at !== change.at || before.text !== change.text)) {
    document.getElementById("news").textContent = change.text;
  }
};
