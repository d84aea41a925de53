// Passkeys: the only part of the account pages that needs a script. A form with `data-passkey` is hidden until here it
// is known that the browser can use it. When it is sent, the browser asks the person for a passkey; its answer is a
// field of the form. `data-options` is where the form gets what the browser needs for that.

const toBytes = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
const toText = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

const withBytes = (list) => (list ?? []).map((each) => ({ ...each, id: toBytes(each.id) }));

async function create(options) {
  const user = { ...options.user, id: toBytes(options.user.id) };
  const excludeCredentials = withBytes(options.excludeCredentials);
  const publicKey = { ...options, challenge: toBytes(options.challenge), user, excludeCredentials };
  const made = await navigator.credentials.create({ publicKey });
  return {
    attestationObject: toText(made.response.attestationObject),
    clientDataJSON: toText(made.response.clientDataJSON),
    ...{ id: made.id },
  };
}

async function choose(options) {
  const allowCredentials = withBytes(options.allowCredentials);
  const publicKey = { ...options, challenge: toBytes(options.challenge), allowCredentials };
  const { id, response } = await navigator.credentials.get({ publicKey });
  return {
    authenticatorData: toText(response.authenticatorData),
    clientDataJSON: toText(response.clientDataJSON),
    signature: toText(response.signature),
    ...{ id },
  };
}

async function answer(form) {
  const body = new URLSearchParams({ form_token: form.elements.form_token.value });
  const response = await fetch(form.dataset.options, { method: "POST", body });
  if (!response.ok) {
    throw new Error("The server has refused that. Open the page again, or try later.");
  }
  const { id, ...fields } = await (form.dataset.passkey === "create" ? create : choose)(await response.json());
  form.elements.credential.value = JSON.stringify({ id, rawId: id, type: "public-key", response: fields });
}

for (const form of window.PublicKeyCredential ? document.querySelectorAll("form[data-passkey]") : []) {
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const problem = form.querySelector("[role=alert]");
    problem.textContent = "";
    try {
      await answer(form);
      form.submit();
    } catch (error) {
      const gone = error.name === "NotAllowedError" ? "That was cancelled, or took too long." : error.message;
      problem.textContent = error.name === "InvalidStateError" ? "This device has a passkey for you already." : gone;
    }
  });
}
