// Asks for /entries twice at the same moment, as you and as a stranger: with cookies and without.

const views = [...document.querySelectorAll(".view")];
const trouble = document.getElementById("trouble");

async function look(view) {
  const credentials = view.dataset.credentials;
  const response = await fetch("/entries", { credentials, cache: "no-store" });
  if (!response.ok) throw new Error(`The guestbook answers with status ${response.status}.`);
  return response.text();
}

const ids = (view) => [...view.querySelectorAll("li")].map((entry) => Number(entry.dataset.entry));

function highlightNews(view, other) {
  const latest = Math.max(0, ...ids(other));
  for (const entry of view.querySelectorAll("li")) {
    entry.classList.toggle("news", Number(entry.dataset.entry) > latest);
  }
}

async function refresh() {
  try {
    const seen = await Promise.all(views.map(look));
    views.forEach((view, i) => {
      // Only what changes is replaced, so that a selection survives.
      if (view.seen !== seen[i]) view.innerHTML = view.seen = seen[i];
    });
    highlightNews(views[0], views[1]);
    highlightNews(views[1], views[0]);
    trouble.textContent = "";
  } catch (error) {
    trouble.textContent = error instanceof TypeError ? "The guestbook cannot be reached." : error.message;
  }
}

async function watch() {
  if (!document.hidden) await refresh();
  setTimeout(watch, 500);
}

watch();
