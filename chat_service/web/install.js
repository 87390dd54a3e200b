// Registers the worker that answers while the service cannot be reached: worker.js, beside this file.

// Over plain HTTP from elsewhere a page has no workers, and a browser may refuse one. Then it shows its own
// page when the service cannot be reached, and nothing else is lost.
navigator.serviceWorker
  ?.register(new URL("worker.js", import.meta.url), { scope: new URL("../", import.meta.url) })
  .catch(() => {});
