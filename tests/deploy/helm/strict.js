// Checks custom resources against the types and schemas of their makers. Reads JSON from standard input: a list of
// objects. Prints what is wrong with them; unknown fields, too, for which it needs the TypeScript compiler.
import { readFileSync } from "node:fs";
import ts from "typescript";

const PACKAGES = {
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "cert-manager.io": "@kubernetes-models/cert-manager",
};

const objects = JSON.parse(readFileSync(0, "utf-8"));
const problems = [];
let source = "";
for (const [number, object] of objects.entries()) {
  const [group] = object.apiVersion.split("/");
  const path = `${PACKAGES[group]}/${object.apiVersion}/${object.kind}`;
  const model = (await import(path))[object.kind];
  try {
    new model(object).validate();
  } catch (error) {
    problems.push(`${object.kind} ${object.metadata.name}: ${error.message}`);
  }
  source += `import type { I${object.kind} as T${number} } from "${path}";\n`;
  source += `(${JSON.stringify(object)}) satisfies T${number};\n`;
}

const options = { noEmit: true, strict: true, skipLibCheck: true, module: ts.ModuleKind.NodeNext };
const host = ts.createCompilerHost(options);
const { getSourceFile, fileExists } = host;
host.getSourceFile = (name, version) =>
  name === "objects.ts" ? ts.createSourceFile(name, source, version) : getSourceFile(name, version);
host.fileExists = (name) => name === "objects.ts" || fileExists(name);
for (const found of ts.getPreEmitDiagnostics(ts.createProgram(["objects.ts"], options, host))) {
  problems.push(ts.flattenDiagnosticMessageText(found.messageText, " "));
}
console.log(JSON.stringify(problems));
