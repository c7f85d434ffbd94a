// Swagger UI on this service's own description; requests made from it carry the page's token.

import { authorization, get, onUnauthorized } from "./api.js";
import { askForToken } from "./dialogs.js";

// Swagger UI has a dark style of its own, behind a class.
const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", dress);
dress();

onUnauthorized(askForToken);

window.SwaggerUIBundle({
  dom_id: "#swagger",
  spec: await get("/openapi.json"),
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  requestInterceptor: (request) => {
    Object.assign(request.headers, authorization());
    return request;
  },
});
