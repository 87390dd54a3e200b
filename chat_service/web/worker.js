// The service worker: if a page cannot be loaded, it answers with a page that says so and tries again.
//
// It stores nothing and answers nothing else. No answer of the API and no script is ever an old one, and the
// page below is always that of this version. A GET of an inbox is left alone, because it reads messages.

/** The pages, relative to the scope, which is "/" or a path of a proxy such as "/inbox/". */
const PAGES = ["", "docs", "ops", "ops/runbook"];
/** With these a proxy says that it cannot reach the service. The pages never have them. */
const OF_PROXIES = [502, 503, 504];

const pageOf = (nonce) => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>No connection · Chat inbox</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="${self.registration.scope}assets/favicon.svg" type="image/svg+xml">
<style nonce="${nonce}">
:root { color-scheme: light dark; --ground: #f3f6f5; --ink: #15211f; --muted: #51605c; --accent: #0a6270; --on: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0e1415; --ink: #e5edeb; --muted: #a1b1ae; --accent: #66c7d4; --on: #06252a; }
}
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
main { max-width: 34rem; margin: 0 auto; padding: 12vh 1.25rem 2rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
p { margin: 1rem 0; }
.muted { color: var(--muted); }
button { min-height: 2.75rem; padding: 0 1.25rem; border: 0; border-radius: .5rem; background: var(--accent);
  color: var(--on); font: inherit; font-weight: 600; cursor: pointer; }
button:focus-visible { outline: 3px solid var(--ink); outline-offset: 2px; }
</style>
</head>
<body>
<main>
<h1>The service cannot be reached</h1>
<p id="why" role="status">It does not answer.</p>
<p>You cannot send or read until it is back. Opening this page sent nothing, read nothing and lost nothing:
messages wait in the service until they are read or expire.</p>
<p><button id="now">Try again now</button></p>
<p class="muted">The page also tries by itself, and opens as soon as the service answers.</p>
</main>
<script nonce="${nonce}">
const why = document.getElementById("why");
async function look() {
  const words = navigator.onLine ? "It does not answer, although this device has a network." : "This device has no network.";
  if (why.textContent !== words) why.textContent = words;
  try {
    // A proxy that asks to sign in redirects elsewhere, where only the page itself can go.
    const signal = AbortSignal.timeout(5000);
    const answer = await fetch(location.href, { method: "HEAD", cache: "no-store", redirect: "manual", signal });
    if (!${JSON.stringify(OF_PROXIES)}.includes(answer.status)) location.reload();
  } catch {
    // Still unreachable.
  }
}
document.getElementById("now").onclick = () => location.reload();
addEventListener("online", look);
addEventListener("offline", look);
setInterval(look, 5000);
look();
</script>
</body>
</html>
`;

function apology() {
  const nonce = crypto.randomUUID();
  const own = `script-src 'nonce-${nonce}'; style-src 'nonce-${nonce}'; img-src 'self'; connect-src 'self'`;
  return new Response(pageOf(nonce), {
    status: 503,
    headers: { "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": `default-src 'none'; ${own}` },
  });
}

async function load(request) {
  try {
    // Without navigation preload: when that fails, Firefox shows its own page.
    const answer = await fetch(request);
    return OF_PROXIES.includes(answer.status) ? apology() : answer;
  } catch {
    return apology();
  }
}

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { mode, url } = event.request;
  const { origin, pathname } = new URL(url);
  const isPage = PAGES.some((page) => self.registration.scope + page === origin + pathname);
  if (mode === "navigate" && isPage) event.respondWith(load(event.request));
});
