// Builds Element for a browser: node build.mjs FOLDER. FOLDER has package.json's packages in its node_modules and the
// files of this folder; the result is in FOLDER/site.
//
// matrix-react-sdk is Element Web's user interface. It was written to be built with webpack; this does the same with
// esbuild and PostCSS, in a fraction of the time: what webpack's loaders do is done by the plug-in below.

import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { argv } from "node:process";
import { build } from "esbuild";
import postcss from "postcss";
import easings from "postcss-easings";
import hexrgba from "postcss-hexrgba";
import imports from "postcss-import";
import mixins from "postcss-mixins";
import nested from "postcss-nested";
import scss from "postcss-scss";
import variables from "postcss-simple-vars";

const FOLDER = resolve(argv[2]);
const SITE = join(FOLDER, "site");
const SDK = join(FOLDER, "node_modules/matrix-react-sdk");
const FILES = [".gif", ".jpg", ".mp3", ".ogg", ".png", ".svg", ".ttf", ".wasm", ".woff", ".woff2"];

const options = {
    bundle: true,
    define: { global: "globalThis", "process.env.NODE_ENV": '"production"' },
    inject: [join(FOLDER, "globals.mjs")],
    legalComments: "none",
    loader: { ...Object.fromEntries(FILES.map((extension) => [extension, "file"])), ".md": "text" },
    logLevel: "error",
    target: "es2022",
    tsconfigRaw: {
        compilerOptions: {
            experimentalDecorators: true,
            jsx: "react",
            target: "es2022",
            useDefineForClassFields: true,
        },
    },
};

/** Returns the module for a picture: its default export is an address, `Icon` is a React component. */
function iconModule(svg) {
    const [, attributes, inner] = /<svg([^>]*)>(.*)<\/svg>/s.exec(svg);
    const properties = {};
    for (const [, name, value] of attributes.matchAll(/([\w:-]+)="([^"]*)"/g)) {
        if (name.startsWith("xmlns") || name === "style") continue;
        const camelCase = name.replace(/[-:](\w)/g, (_, letter) => letter.toUpperCase());
        properties[name === "class" ? "className" : /^(aria|data)-/.test(name) ? name : camelCase] = value;
    }
    const fixed = { ...properties, dangerouslySetInnerHTML: { __html: inner } };
    return `
        import { createElement, forwardRef } from "react";
        export default ${JSON.stringify(`data:image/svg+xml,${encodeURIComponent(svg)}`)};
        export const Icon = forwardRef((given, ref) =>
            createElement("svg", { ...${JSON.stringify(fixed)}, ...given, ref }));
    `;
}

/** Puts what matches `filter` into a namespace of its own, in which `load` makes modules of the files. */
function redirect(builder, namespace, filter, load, strip = "") {
    builder.onResolve({ filter }, async ({ path, importer, resolveDir, kind, pluginData }) => {
        if (pluginData === "resolving" || kind === "url-token") return undefined;
        const wanted = { importer, resolveDir, kind, pluginData: "resolving" };
        const found = await builder.resolve(path.replace(strip, ""), wanted);
        return { path: found.path, namespace, errors: found.errors };
    });
    builder.onLoad({ filter: /.*/, namespace }, ({ path }) => ({ resolveDir: dirname(path), ...load(path) }));
}

const webpackLoaders = {
    name: "webpack-loaders",
    setup(builder) {
        redirect(builder, "icon", /\.svg$/, (path) => ({ contents: iconModule(readFileSync(path, "utf8")) }));
        const asText = (path) => ({ contents: readFileSync(path), loader: "text" });
        redirect(builder, "raw", /^!!raw-loader!/, asText, "!!raw-loader!");
        const asFile = (path) => ({ contents: readFileSync(path), loader: "file" });
        redirect(builder, "worker", /opus-recorder\/dist\/.*\.js$|\/RecorderWorklet$/, asFile);
        builder.onLoad({ filter: /\/workers\/\w+WorkerFactory\.ts$/ }, ({ path }) => {
            const worker = /(\w+)WorkerFactory/.exec(path)[1];
            return { contents: `export default (options) => new Worker("workers/${worker}.worker.js", options);` };
        });
        builder.onResolve({ filter: /^\$webapp\/i18n\/languages\.json$/ }, ({ path }) => ({ path, namespace: "web" }));
        builder.onLoad({ filter: /.*/, namespace: "web" }, () => ({ contents: 'export default "i18n/languages.json";' }));
    },
};

async function buildStyles(theme) {
    const from = join(SDK, `res/themes/${theme}/css/${theme}.pcss`);
    const plugins = [
        imports({ path: [join(FOLDER, "node_modules")] }),
        mixins(),
        variables(),
        nested(),
        easings(),
        hexrgba(),
    ];
    const { css } = await postcss(plugins).process(readFileSync(from, "utf8"), { from, parser: scss });
    const stdin = { contents: css, resolveDir: dirname(from), loader: "css" };
    await build({ ...options, inject: [], stdin, outfile: join(SITE, `${theme}.css`) });
}

rmSync(SITE, { recursive: true, force: true });
const app = { app: join(FOLDER, "app.mjs") };
await build({ ...options, entryPoints: app, outdir: SITE, format: "esm", splitting: true, plugins: [webpackLoaders] });
const workers = ["blurhash", "indexeddb", "playback"].map((name) => join(SDK, `src/workers/${name}.worker.ts`));
await build({ ...options, entryPoints: workers, outdir: join(SITE, "workers"), format: "iife" });
await buildStyles("light");
mkdirSync(join(SITE, "i18n"));
cpSync(join(SDK, "src/i18n/strings/en_EN.json"), join(SITE, "i18n/en_EN.json"));
writeFileSync(join(SITE, "i18n/languages.json"), JSON.stringify({ en: "en_EN.json" }));
cpSync(join(SDK, "res/media"), join(SITE, "media"), { recursive: true });
for (const name of ["index.html", "service_worker.js"]) cpSync(join(FOLDER, name), join(SITE, name));
