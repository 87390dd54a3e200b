// A certified OpenID Connect provider that signs access tokens for the service (RFC 9068).
// usage: node provider.js '{"port": 0, "audience": "...", "keys": [private JSON Web Keys]}'
// The first key signs. It writes its port to standard output once it listens.
import { Provider } from "oidc-provider";

const { port, audience, keys } = JSON.parse(process.argv[2]);
const client = {
  token_endpoint_auth_method: "client_secret_post",
  client_secret: "a-secret-of-the-test-that-is-long-enough",
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      ...client,
      client_id: "worker",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
    },
    {
      client_id: "page",
      token_endpoint_auth_method: "none",
      grant_types: ["authorization_code", "refresh_token"],
      redirect_uris: ["https://page.example/callback"],
      scope: "openid offline_access chat",
    },
  ],
  scopes: ["openid", "offline_access", "chat"],
  jwks: { keys },
  clientDefaults: { id_token_signed_response_alg: keys[0].alg },
  enabledJWA: { idTokenSigningAlgValues: ["RS256", "ES256", "EdDSA"] },
  cookies: { keys: ["not a secret"] },
  extraTokenClaims: (_, token) =>
    token.kind === "ClientCredentials" ? { chat: { send: ["*"], read: ["jobs-*"] } } : undefined,
  features: {
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => audience,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        audience,
        scope: "chat",
        accessTokenTTL: 600,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: keys[0].alg } },
      }),
    },
  },
});
provider.listen(port, "127.0.0.1", () => console.log(port));
